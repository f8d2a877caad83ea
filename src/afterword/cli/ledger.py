"""Settings become a ledger, for the server and for the commands that work on it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from afterword.config import Settings
from afterword.core.errors import ConfigError
from afterword.ledger.access import Clocks, Entrance, Policy
from afterword.ledger.database import connect, parse_url, reason, sqlite_url
from afterword.ledger.keys import KeyStore
from afterword.ledger.open_ledger import LedgerOptions, make_folder, open_database
from afterword.ledger.writer import ProcessIdentity

CLOCKS = Clocks(time.monotonic, time.time)


def data_folder(settings: Settings) -> Path:
    """Where the ledger is kept."""
    given = settings.data_dir
    return Path(given) if given else platformdirs.user_data_path("afterword")


def ledger_options(settings: Settings, entrance: Entrance) -> LedgerOptions:
    """What the settings say of the ledger."""
    return LedgerOptions(
        folder=data_folder(settings),
        database=settings.database,
        redis=settings.redis,
        journal_bytes=settings.journal_mb << 20,
        policy=Policy(
            entrance=entrance,
            serve_without_database=settings.database_down == "serve",
            sync_always=settings.journal_sync == "always",
        ),
    )


def identity() -> ProcessIdentity:
    """What this process is called in the ledger."""
    return ProcessIdentity(f"p{os.urandom(6).hex()}", platform.node(), os.getpid())


@contextmanager
def database(settings: Settings, *, prepared: bool = True) -> Iterator[sa.Engine]:
    """The ledger's database for a command; what goes wrong there is one line.

    ``prepared`` makes its tables where there are none.
    """
    try:
        if prepared:
            engine = open_database(data_folder(settings), settings.database)
        else:
            make_folder(data_folder(settings))
            given = settings.database
            url = parse_url(given) if given else sqlite_url(data_folder(settings) / "ledger.db")
            engine = connect(url)
        try:
            yield engine
        finally:
            engine.dispose()
    except SQLAlchemyError as error:
        raise ConfigError(f"the ledger's database cannot be used: {reason(error)}") from error


def key_store(engine: sa.Engine) -> KeyStore:
    """The keys of a database."""
    return KeyStore(engine, clock=time.time, entropy=os.urandom)
