"""The database as a whole: opening, upgrading and copying it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from afterword.core.errors import ConfigError
from afterword.ledger import migrations
from afterword.ledger.folder import database_file, make_folder, make_private_file
from afterword.ledger.sqlite_file import Identity, SqliteFile, remove_leftovers

_log = logging.getLogger(__name__)
Database: TypeAlias = sa.Engine
"""A database that a ledger is kept in."""
REVISION = "0002"
"""The step of ``migrations`` that this code needs."""
_BUSY_MS = 5000
_RETRY_S = 0.01
_CONNECT_S = 3
_STATEMENT_MS = 30_000
_QUOTED = re.compile(r'"[^"]*"(?: \([^)]*\))?')
"""What a driver quotes: names, and a host with its address."""
_FILE = "afterword_file"
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
# Of two servers that start at once on one database, the second waits for the first.
_UPGRADE_LOCK = 0x61667465


def parse_url(text: str) -> URL:
    """Returns a database's URL with its driver. Raises ``ConfigError``."""
    try:
        url = make_url(text)
        backend = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigError("the database's URL cannot be parsed") from error
    if backend not in _DRIVERS:
        raise ConfigError(f"the database is {backend!r}: expected 'sqlite' or 'postgresql'")
    if backend == "sqlite" and url.database in {None, "", ":memory:"}:
        raise ConfigError("a ledger in memory would be lost: name a file, sqlite:///FILE")
    return url.set(drivername=_DRIVERS[backend])


def sqlite_url(file: Path) -> URL:
    """Returns the URL of a SQLite file."""
    return URL.create("sqlite", database=str(file))


def connect(url: URL, *, patient: bool = False) -> sa.Engine:
    """Returns an engine, which connects at first use. Raises ``ConfigError``.

    ``patient``: a statement may take any time, because no request waits for it.
    """
    if url.get_backend_name() == "sqlite":
        return _connect_sqlite(url)
    arguments = {
        "connect_timeout": _CONNECT_S,
        "application_name": "afterword",
        # Notices a server that vanished before TCP gives up.
        "options": f"-c statement_timeout={0 if patient else _STATEMENT_MS}",
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    }
    try:
        return sa.create_engine(url, connect_args=arguments, pool_size=2, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise ConfigError(
            "PostgreSQL needs its driver: pip install 'afterword[postgres]'"
        ) from error


def _connect_sqlite(url: URL) -> sa.Engine:
    """Returns an engine on a file that only its owner may read, as are those that SQLite adds."""
    file = Path(url.database or "")
    try:
        remove_leftovers(file)
        make_private_file(file)
    except OSError:
        # SQLite says what is wrong, at first use.
        _log.debug("%s cannot be made", file)
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_MS / 1000})
    there = SqliteFile(file)

    @sa.event.listens_for(engine, "do_connect")
    def prepare_file(*_: object) -> None:
        there.prepare()

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
        entry.info[_FILE] = there.identity()
        # ``begin`` below starts transactions, not the driver.
        connection.isolation_level = None
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        # On macOS, a sync without this leaves the file in the cache of the drive.
        connection.execute("PRAGMA checkpoint_fullfsync=ON")
        connection.execute("PRAGMA foreign_keys=ON")

    @sa.event.listens_for(engine, "checkout")
    def check_out(_: sqlite3.Connection, entry: ConnectionPoolEntry, *__: object) -> None:
        if not there.is_still(entry.info[_FILE]):
            # The pool opens others in the place of all that it keeps.
            raise sa.exc.InvalidatePoolError

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        if not there.is_still(file_of(connection)):
            connection.invalidate()
            moved = sqlite3.OperationalError("its file was moved, removed or replaced")
            raise sa.exc.OperationalError(None, None, moved)
        # A reader that becomes a writer midway fails if another process wrote in between.
        reads = connection.get_execution_options().get("reads", False)
        # By SQLAlchemy, so that a locked database is an error of SQLAlchemy's.
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Set the journal of a new file; one that is set already stays. Raises ``sqlite3.Error``.

    SQLite does not wait here: of several that open one new file together, one finds it locked at
    once, whatever the timeout.
    """
    last = time.monotonic() + _BUSY_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > last:
                raise
            time.sleep(_RETRY_S)
        else:
            return


def file_of(connection: sa.Connection) -> Identity | None:
    """Returns the file that a connection has open; None for a database without one."""
    found: Identity | None = connection.info.get(_FILE)
    return found


@contextlib.contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that only reads and blocks no writer."""
    with engine.connect().execution_options(reads=True) as connection, connection.begin():
        yield connection


def open_database(folder: Path, database: str | None, *, patient: bool = False) -> sa.Engine:
    """The ledger's database, its tables made if there are none. Raises ``ConfigError``.

    ``database`` None is a file in ``folder``. ``patient`` as for ``connect``.
    """
    if database is None:
        make_folder(folder)
        url = sqlite_url(database_file(folder))
    else:
        url = parse_url(database)
    engine = connect(url, patient=patient)
    try:
        prepare(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def revision_of(engine: sa.Engine) -> str | None:
    """Returns the step that the tables are at, or None if there are none."""
    with reading(engine) as connection:
        return _step(connection)


def _step(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return found


def upgrade(engine: sa.Engine, *, to: str = "head") -> None:
    """Run the missing steps up to one, all or none. Waits for another process that does so.

    Raises ``ConfigError`` for tables that no step leads on from.
    """
    # Alembic takes a third of a second to import. A database that is up to date does not need it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # Another process may be upgrading a long table.
            connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
        found = _step(connection)
        steps = {step.revision for step in ScriptDirectory.from_config(config).walk_revisions()}
        if found is not None and found not in steps:
            raise ConfigError(
                f"the ledger is of another version: this program does not know its step, "
                f"{found[:40]!a}"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, to)


def prepare(engine: sa.Engine) -> None:
    """Make the tables if there are none. Raises ``ConfigError`` if they are of another version.

    ``afterword db upgrade`` upgrades an older ledger, so that the operator can copy it first.
    """
    try:
        found = revision_of(engine)
        if found is None:
            upgrade(engine)
            return
    except DBAPIError as error:
        raise ConfigError(f"the ledger's database cannot be used: {reason(error)}") from error
    if found < REVISION:
        raise ConfigError("the ledger is of an older version: run `afterword db upgrade`")
    if found > REVISION:
        raise ConfigError("the ledger is of a newer version than this program")


def reason(error: SQLAlchemyError) -> str:
    """Returns the driver's message in one line, without the statement, hosts and paths."""
    original = getattr(error, "orig", None) or error
    lines = str(original).strip().splitlines()
    return _QUOTED.sub('"…"', lines[0]) if lines else type(original).__name__


def is_away(error: Exception) -> bool:
    """Whether an error says that the database cannot be used now, whatever it is asked."""
    if isinstance(error, sa.exc.DBAPIError):
        away = (sa.exc.OperationalError, sa.exc.InterfaceError)
        return error.connection_invalidated or isinstance(error, away)
    return isinstance(error, sa.exc.TimeoutError | sa.exc.DisconnectionError)


def backup(engine: sa.Engine, file: Path) -> None:
    """Copy a SQLite ledger of any version to a new file, consistently, while servers go on.

    Raises ``ConfigError`` if the file exists or cannot be written, if there is no ledger, and for
    PostgreSQL, which has its own tool.
    """
    if engine.dialect.name != "sqlite":
        raise ConfigError("PostgreSQL has its own tool: pg_dump --format=custom DATABASE > FILE")
    if revision_of(engine) is None:
        raise ConfigError("there is no ledger to copy: the database has no tables")
    if not file.name:
        raise ConfigError(f"{file}: is a folder, not a file")
    # A copy that is cut short, by a signal too, never has the name of a copy.
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        # A link, too: the copy would be written elsewhere.
        if os.path.lexists(file):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        make_private_file(part)
        with engine.connect() as connection, contextlib.closing(sqlite3.connect(part)) as copy:
            source: Any = connection.connection.driver_connection
            source.backup(copy)
            # The copy is one file, without a -wal file next to it.
            copy.execute("PRAGMA journal_mode=DELETE")
        part.rename(file)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except sqlite3.Error as error:
        raise ConfigError(f"{file}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
