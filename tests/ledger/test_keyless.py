"""A server without keys records in the journal alone until there is a database."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from afterword.cli import cli
from afterword.cli.checkup import surroundings
from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.service import CompletionService
from afterword.config import Settings
from afterword.core.account import KeyTerms, UsageQuery, UsageRecord
from afterword.core.limits import Limits
from afterword.engine.toy import toy_engine
from afterword.http.app import Access, create_app
from afterword.http.lifecycle import Lifecycle
from afterword.ledger import open_ledger as module
from afterword.ledger.access import Clocks
from afterword.ledger.audit import check
from afterword.ledger.database import open_database
from afterword.ledger.keys import KeyStore
from afterword.ledger.open_ledger import LedgerOptions, OpenLedger, open_ledger
from afterword.ledger.process import ProcessIdentity
from afterword.ledger.store import UsageStore
from afterword.ledger.writer import LedgerWriter
from support.asgi import Client

BODY: dict[str, Any] = {"model": "toy", "prompt": "a", "ignore_eos": True, "max_tokens": 3}
PATH = "/v1/completions"


@dataclass
class Keyless:
    """A running server that began without a database, and its data folder."""

    client: Client
    ledger: OpenLedger
    folder: Path

    async def complete(self, count: int) -> set[str]:
        """Returns the ids of so many answers."""
        answers = [await self.client.post(PATH, BODY) for _ in range(count)]
        assert {answer.status for answer in answers} == {200}
        return {answer.json()["id"] for answer in answers}

    async def opened(self) -> None:
        """Wait until the server has a database with all records in it."""
        while self.ledger.queries is None or self.ledger.access.figures().pending_writes:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def keyless(folder: Path, name: str = "k1") -> AsyncIterator[Keyless]:
    """A server that starts and ends as a real one does."""
    options = LedgerOptions(folder=folder)
    assert options.keyless()
    engine = toy_engine()
    clocks = Clocks(time.monotonic, time.time)
    identity = ProcessIdentity(name, "host", 1)
    async with open_ledger(None, options, identity, clocks=clocks, entropy=os.urandom) as ledger:
        service = CompletionService(
            Catalog([ServedModel("toy", engine, 1)]), Limits(), clock=time.time, entropy=os.urandom
        )
        app = create_app(
            service,
            lifecycle=Lifecycle(),
            clock=time.monotonic,
            entropy=os.urandom,
            access=Access(ledger=ledger.access, queries=lambda: ledger.queries),
        )
        yield Keyless(Client(app), ledger, folder)
    await engine.aclose()


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Keyless]:
    monkeypatch.setattr(module, "WATCH_S", 0.01)
    async with keyless(tmp_path) as running:
        yield running


def create(folder: Path, name: str, **terms: Any) -> str:
    """Make a key as another process does. Returns its secret."""
    database = open_database(folder, None)
    made = KeyStore(database, clock=time.time, entropy=os.urandom).create(
        KeyTerms(name=name, **terms)
    )
    database.dispose()
    return made.secret


def recorded(folder: Path) -> list[UsageRecord]:
    """Returns the records in the database, whose sums agree."""
    database = open_database(folder, None)
    records = UsageStore(database).requests(UsageQuery())
    assert check(database) == []
    database.dispose()
    return records


def usage(folder: Path) -> set[str]:
    """Returns the ids that ``afterword usage`` shows."""
    done = CliRunner().invoke(
        cli, ["usage", "--requests", "--json", "--data-dir", str(folder)], catch_exceptions=False
    )
    assert done.exit_code == 0
    return {json.loads(line)["id"] for line in done.stdout.splitlines()}


async def test_nothing_but_the_journal_is_written(server: Keyless) -> None:
    await server.complete(2)
    assert [path.name for path in server.folder.iterdir()] == ["journal"]
    figures = server.ledger.access.figures()
    assert (figures.reachable, figures.unsettled, figures.pending_writes) == (True, 0, 2)
    ready = await server.client.get("/ready")
    assert (ready.status, ready.json()["ledger"]) == (200, "reachable")
    assert (await server.client.get("/admin/v1/keys")).status == 403


async def test_the_first_key_is_needed_at_once(server: Keyless) -> None:
    """Requests that ended or began before it are recorded."""
    ids = await server.complete(2)
    blocked = asyncio.Event()
    exchange, run = server.client.begin({**BODY, "stream": True}, blocked=blocked)
    await exchange.frames(1)
    key = create(server.folder, "a", rpm=100, budget_tokens=1000, admin=True)
    began_s = time.monotonic()
    while (await server.client.get("/v1/models")).status == 200:
        assert time.monotonic() < began_s + 10
        await asyncio.sleep(0.01)
    known = server.client.with_key(key)
    answer = await known.post(PATH, BODY)
    assert answer.status == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "99"
    assert (await known.get("/admin/v1/keys")).status == 200
    blocked.set()
    await run
    await server.opened()
    records = {record.id: record for record in recorded(server.folder)}
    assert len(records) == 4
    assert ids | {answer.json()["id"]} < records.keys()
    assert [record.key_id is None for record in records.values()].count(True) == 3
    assert {record.status for record in records.values()} == {"answered"}


async def test_keys_are_looked_for_when_it_is_asked_for(tmp_path: Path) -> None:
    """SIGHUP does so."""
    async with keyless(tmp_path) as running:
        await running.complete(1)
        create(tmp_path, "a")
        running.ledger.refresh()
        await running.opened()
        assert (await running.client.get("/v1/models")).status == 401
        running.ledger.refresh()


@pytest.mark.parametrize("bound", ["records", "bytes"])
async def test_a_server_that_runs_for_long_opens_a_database(
    server: Keyless, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    await server.complete(1)
    await asyncio.sleep(0.05)
    assert server.ledger.queries is None
    if bound == "records":
        monkeypatch.setattr(module, "_MOST_PENDING", 5)
    else:
        monkeypatch.setattr(module, "SEGMENT_BYTES", 1 << 19)
    await server.complete(5)
    await server.opened()
    assert len(recorded(server.folder)) == 6
    # There is still no key, so none is needed.
    assert (await server.client.get("/v1/models")).status == 200


async def test_what_a_server_recorded_is_shown_after_its_end(tmp_path: Path) -> None:
    async with keyless(tmp_path, "k1") as running:
        ids = await running.complete(3)
    (journal,) = (tmp_path / "journal").iterdir()
    assert journal.stat().st_size < 10_000
    # Two servers leave two short journals. A third still opens no database.
    async with keyless(tmp_path, "k2") as running:
        ids |= await running.complete(2)
    async with keyless(tmp_path, "k3"):
        pass
    assert len(list((tmp_path / "journal").iterdir())) == 2
    assert usage(tmp_path) == ids
    assert list((tmp_path / "journal").iterdir()) == []
    assert {one.id for one in recorded(tmp_path)} == ids


async def test_a_database_that_is_checked_first(tmp_path: Path) -> None:
    async with keyless(tmp_path) as running:
        ids = await running.complete(1)
    done = CliRunner().invoke(cli, ["db", "check", "--data-dir", str(tmp_path)])
    assert done.stdout == "the ledger is whole\n"
    assert {one.id for one in recorded(tmp_path)} == ids


async def test_what_a_running_server_recorded_is_shown(server: Keyless) -> None:
    """The command that makes the database writes the records; the server does not count twice."""
    ids = await server.complete(3)
    assert await asyncio.to_thread(usage, server.folder) == ids
    await server.opened()
    assert {one.id for one in recorded(server.folder)} == ids
    assert len(await server.complete(1) | ids) == 4
    await server.opened()
    assert len(recorded(server.folder)) == 4


async def test_a_server_that_has_just_found_the_database_has_not_written_yet(
    server: Keyless, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first heartbeat comes before its records: commands still take them from its journal."""
    ids = await server.complete(2)
    with monkeypatch.context() as patch:
        patch.setattr(LedgerWriter, "_write", lambda _: None)
        patch.setattr("afterword.ledger.writer._HEARTBEAT_S", math.inf)
        create(server.folder, "a")
        while server.ledger.queries is None:
            await asyncio.sleep(0)
        assert await asyncio.to_thread(usage, server.folder) == ids
    assert {record.id for record in recorded(server.folder)} == ids


async def test_two_commands_show_what_a_running_server_recorded(tmp_path: Path) -> None:
    """The first makes the database; the server has not found it when the second runs."""
    async with keyless(tmp_path) as running:
        running.ledger.look = lambda: None  # type: ignore[method-assign]
        ids = await running.complete(2)
        assert usage(tmp_path) == ids
        ids |= await running.complete(1)
        assert usage(tmp_path) == ids


async def test_a_neighbour_that_was_killed(
    server: Keyless, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its journal keeps its full size. A running server opens a database and writes it."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", lambda *_: None)
        async with keyless(server.folder, "k2") as neighbour:
            ids = await neighbour.complete(1)
    server.ledger._orphans_at_s = 0.0
    await server.opened()
    assert {one.id for one in recorded(server.folder)} == ids


async def test_a_server_that_was_killed_is_a_reason_to_open_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its journal has its full size. The next server writes it before it listens."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", lambda *_: None)
        async with keyless(tmp_path) as running:
            ids = await running.complete(1)
    options = LedgerOptions(folder=tmp_path)
    assert not options.keyless()
    clocks = Clocks(time.monotonic, time.time)
    engine = open_database(tmp_path, None)
    identity = ProcessIdentity("p2", "host", 1)
    async with open_ledger(engine, options, identity, clocks=clocks, entropy=os.urandom):
        assert {one.id for one in recorded(tmp_path)} == ids


async def test_a_server_of_another_database_keeps_its_journal(tmp_path: Path) -> None:
    """A command that does not know the database must not move its records."""
    async with keyless(tmp_path, "p1") as running:
        await running.complete(1)
    assert usage(tmp_path) == set()
    assert len(list((tmp_path / "journal").iterdir())) == 1


async def test_a_database_that_cannot_be_opened(
    server: Keyless, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is logged once, requests go on, and the server tries again."""
    tries = itertools.count()
    third = asyncio.Event()
    loop = asyncio.get_running_loop()

    def counted(*given: Any) -> Any:
        if next(tries) == 2:
            loop.call_soon_threadsafe(third.set)
        return open_database(*given)

    monkeypatch.setattr("afterword.ledger.database.open_database", counted)
    file = server.folder / "ledger.db"
    file.write_bytes(b"nonsense" * 1000)
    await third.wait()
    await server.complete(1)
    assert caplog.text.count("cannot be opened") == 1
    # Whole at once: the server looks for it all the time.
    create(server.folder / "made", "a")
    (server.folder / "made" / "ledger.db").replace(file)
    await server.opened()
    assert (await server.client.get("/v1/models")).status == 401
    assert len(recorded(server.folder)) == 1


def test_a_database_or_redis_is_opened_at_the_start(tmp_path: Path) -> None:
    assert LedgerOptions(folder=tmp_path).keyless()
    assert not LedgerOptions(folder=tmp_path, database="sqlite:///x").keyless()
    assert not LedgerOptions(folder=tmp_path, redis="redis://h").keyless()
    create(tmp_path, "a")
    assert not LedgerOptions(folder=tmp_path).keyless()


def test_a_doctor_makes_no_database(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path / "data"))
    (finding,) = [one for one in surroundings(settings) if one.name == "ledger"]
    file = tmp_path / "data" / "ledger.db"
    assert finding.text == f"sqlite, {file}, empty: the server sets it up"
    assert not (tmp_path / "data").exists()
