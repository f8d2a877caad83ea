"""The database as a whole: migrations make its tables; other versions are refused."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from afterword.core.account import UsageQuery
from afterword.core.errors import ConfigError
from afterword.ledger import budgets, database
from afterword.ledger.audit import check
from afterword.ledger.command import open_for_command
from afterword.ledger.database import (
    _UPGRADE_LOCK,
    REVISION,
    connect,
    is_away,
    open_database,
    parse_url,
    prepare,
    reading,
    revision_of,
    sqlite_url,
    upgrade,
)
from afterword.ledger.store import UsageStore
from afterword.ledger.tables import metadata
from ledger.values import NOW, record
from standins.services import Postgres


def test_a_reason_names_no_host_and_no_address() -> None:
    """As psycopg writes it for a host with a name."""
    said = 'connection to server at "db.internal" (10.1.2.3), port 5432 failed: refused\nIs it on?'
    error = sa.exc.OperationalError("SELECT 1", None, Exception(said))
    assert database.reason(error) == 'connection to server at "\u2026", port 5432 failed: refused'


def test_the_steps_lead_to_the_tables(engine: sa.Engine) -> None:
    """No difference between what migrations made and what the code expects."""
    assert revision_of(engine) == REVISION
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    assert check(engine) == []


def test_servers_that_start_at_once_make_one_ledger(empty_url: str) -> None:
    """An empty database, eight at once: one makes the tables, the others find them."""

    def start(_: int) -> str | None:
        engine = connect(parse_url(empty_url))
        prepare(engine)
        found = revision_of(engine)
        engine.dispose()
        return found

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(start, range(8))) == {REVISION}


def test_an_upgrade_waits_for_another(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """For longer than any other statement may take."""
    postgres.sql("CREATE DATABASE upgraded")
    url = parse_url(postgres.url("upgraded"))
    other = connect(url)
    monkeypatch.setattr("afterword.ledger.database._STATEMENT_MS", 50)
    second = connect(url)
    waits = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = 'upgraded' AND "
        "wait_event = 'advisory' AND clock_timestamp() > query_start + interval '100 ms'"
    )
    with ThreadPoolExecutor(1) as threads:
        with other.begin() as holding:
            holding.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
            waiting = threads.submit(upgrade, second)
            with other.connect().execution_options(isolation_level="AUTOCOMMIT") as looking:
                while not looking.scalar(waits):
                    assert not waiting.done()
        waiting.result()
    other.dispose()
    second.dispose()


def test_commands_wait_for_long_statements(postgres: Postgres, tmp_path: Path) -> None:
    """A sum over millions of records; a server's requests do not wait for so long."""
    postgres.sql("CREATE DATABASE patient")
    url = postgres.url("patient")
    for prepared in (True, False):
        with (
            open_for_command(tmp_path, url, prepared=prepared) as engine,
            engine.connect() as connection,
        ):
            assert connection.scalar(sa.text("SHOW statement_timeout")) == "0"
    engine = open_database(tmp_path, url)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SHOW statement_timeout")) == "30s"
    engine.dispose()


def test_an_upgrade_that_fails_halfway_has_done_nothing(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is killed, or whose disk is full. The next one begins anew."""
    engine = connect(parse_url(empty_url))

    def fail(*_: object) -> None:
        raise OSError("no space is left")

    with monkeypatch.context() as patch:
        patch.setattr("alembic.op.create_index", fail)
        with pytest.raises(OSError, match="no space"):
            upgrade(engine)
    assert sa.inspect(engine).get_table_names() == []
    upgrade(engine)
    assert check(engine) == []
    engine.dispose()


@pytest.mark.parametrize(
    ("found", "says"), [("0000", "run `afterword db upgrade`"), ("9999", "of a newer version")]
)
def test_ledgers_of_another_time(engine: sa.Engine, found: str, says: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :n"), {"n": found})
    with pytest.raises(ConfigError, match=says):
        prepare(engine)


@pytest.mark.parametrize("found", ["9999", "0000", "", "nonsense"])
def test_an_upgrade_from_a_step_that_nobody_knows(engine: sa.Engine, found: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :v"), {"v": found})
    with pytest.raises(ConfigError, match="does not know its step"):
        upgrade(engine)
    assert revision_of(engine) == found


def test_readers_hold_up_no_writer(connected: Callable[[], sa.Engine]) -> None:
    reader, writer = connected(), connected()
    with reading(reader) as connection:
        before = connection.scalar(sa.text("SELECT keys_version FROM state"))
        with writer.begin() as other:
            other.execute(sa.text("UPDATE state SET keys_version = keys_version + 1"))
        assert before is not None


def test_a_page_of_requests_reads_no_others(tmp_path: Path) -> None:
    """Each is found by an index that has its order, so a long table costs no more."""
    engine = open_database(tmp_path, None)
    asked: list[tuple[str, Any]] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(_: object, __: object, statement: str, values: object, *___: object) -> None:
        asked.append((statement, values))

    with engine.begin() as connection:
        budgets.write(connection, [record("cmpl-1"), record("cmpl-2")])
    store = UsageStore(engine)
    for query in (UsageQuery(), UsageQuery(since=NOW), UsageQuery(since=NOW, key_id="k")):
        for after in ("", "cmpl-1"):
            store.requests(query, after=after)
            with engine.connect() as connection:
                plan = connection.exec_driver_sql(
                    f"EXPLAIN QUERY PLAN {asked[-1][0]}", asked[-1][1]
                )
                (how, *_) = [row.detail for row in plan]
            assert "USING INDEX usage_by_" in how, how
    engine.dispose()


def test_a_database_that_stays_locked_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where SQLite only finds it when a transaction begins."""
    monkeypatch.setattr("afterword.ledger.database._BUSY_MS", 1)
    url = sqlite_url(tmp_path / "ledger.db")
    prepare(connect(url))
    with connect(url).begin(), pytest.raises(sa.exc.OperationalError) as caught:
        connect(url).begin().__enter__()
    assert is_away(caught.value)


def test_a_new_file_that_another_server_begins_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own timeout does not hold while the journal of a new file is set."""
    file = tmp_path / "ledger.db"
    engine = connect(sqlite_url(file))
    waited: list[float] = []
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 2:
                other.execute("COMMIT")

        monkeypatch.setattr("time.sleep", sleep)
        prepare(engine)
    assert len(waited) == 2
    assert revision_of(engine) == REVISION
    engine.dispose()


def test_passwords_are_not_shown() -> None:
    url = parse_url("postgresql://u:hunter2@h/d")
    assert "hunter2" not in str(url)
    assert "hunter2" in url.render_as_string(hide_password=False)


def test_checkpoints_reach_the_disk_on_macos_too(tmp_path: Path) -> None:
    """The setting is read on every system, and means something on macOS."""
    engine = connect(sqlite_url(tmp_path / "ledger.db"))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA checkpoint_fullfsync").scalar() == 1
    engine.dispose()
