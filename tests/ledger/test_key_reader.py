"""Servers know the keys as they are: a change costs what it changes, and none is missed."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from afterword.core.account import KeyTerms
from afterword.ledger import key_reader, keys, tables
from afterword.ledger.audit import check
from afterword.ledger.database import connect, parse_url, reading, upgrade
from afterword.ledger.key_reader import KeyReader
from afterword.ledger.keys import KeyStore
from afterword.ledger.tables import key_changes, metadata, secrets
from ledger.team import team
from ledger.values import NOW, Hand
from support.examples import examples


def look(reader: KeyReader, engine: sa.Engine) -> None:
    """What a server does in a second."""
    once = True
    while once or not reader.whole:
        once = False
        with reading(engine) as connection:
            reader.look(connection)


def many(engine: sa.Engine, count: int) -> None:
    """Adds keys as a loader does that knows nothing of changes."""
    rows = [{"id": f"key-{i:012x}", "name": f"n{i}"} for i in range(count)]
    common = {"budget_per": "month", "admin": False, "created_at": NOW}
    made = [
        {"digest": random.Random(i).randbytes(32).hex(), "key_id": row["id"], "prefix": "sk",
         "created_at": NOW} for i, row in enumerate(rows)
    ]  # fmt: skip
    with engine.begin() as connection:
        connection.execute(sa.insert(tables.keys), [{**row, **common} for row in rows])
        connection.execute(sa.insert(secrets), made)
        connection.exec_driver_sql("UPDATE state SET keys_version = keys_version + 1")


@pytest.fixture
def asked(engine: sa.Engine) -> Iterator[list[str]]:
    """The statements that the engine runs."""
    statements: list[str] = []

    def note(*given: object) -> None:
        if str(given[2]).startswith("SELECT"):
            statements.append(f"{given[2]} {given[3]}")

    sa.event.listen(engine, "before_cursor_execute", note)
    yield statements
    sa.event.remove(engine, "before_cursor_execute", note)


def test_a_change_costs_the_same_however_many_keys_there_are(
    engine: sa.Engine, key_store: KeyStore, hand: Hand, asked: list[str]
) -> None:
    """It reads the changed key and no other."""
    many(engine, 3 * key_reader._SLICE_KEYS)
    first = key_store.create(KeyTerms(name="a"))
    reader = KeyReader()
    look(reader, engine)
    changes: list[Callable[[], object]] = [
        lambda: key_store.create(KeyTerms(name="b")),
        lambda: key_store.rotate("a", 0),
        lambda: key_store.revoke("a"),
    ]
    for change in changes:
        change()
        asked.clear()
        look(reader, engine)
        assert len(asked) <= 4
        assert not any("key-000000000001" in one for one in asked)
    assert reader.keyring.find(first.secret, hand()) is None
    asked.clear()
    look(reader, engine)
    assert len(asked) == 1


def test_all_keys_are_read_in_slices(engine: sa.Engine, asked: list[str]) -> None:
    """Between two of them the writer decides claims, and the event loop has its turns."""
    many(engine, 3 * key_reader._SLICE_KEYS + 1)
    reader, known = KeyReader(), [0]
    while not reader.whole:
        with reading(engine) as connection:
            reader.look(connection)
        known.append(sum(map(len, reader.keyring._by_id)))
        assert known[-1] - known[-2] <= key_reader._SLICE_KEYS
    assert known[-1] == 3 * key_reader._SLICE_KEYS + 1
    assert len(asked) <= 4 * (len(known) - 1)


def test_no_collection_of_garbage_visits_keys(engine: sa.Engine, key_store: KeyStore) -> None:
    """A visit of a million of them would hold up every stream."""
    key_store.create(KeyTerms(name="a", models=("small",), budget_tokens=9))
    key_store.rotate("a", 60)
    reader = KeyReader()
    look(reader, engine)
    ring = reader.keyring
    kept = [*filter(None, ring._by_digest), *filter(None, ring._by_id)]
    held = [key for part in ring._by_id for one in part.values() for key in one.all()]
    assert (len(kept), len(held)) == (3, 2)
    assert not any(map(gc.is_tracked, [*kept, *held, *(key.terms for key in held)]))


def test_a_key_ends_while_all_keys_are_read(
    engine: sa.Engine, key_store: KeyStore, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that missed too many changes to know what they were still learns of the next."""
    monkeypatch.setattr(key_reader, "_SLICE_KEYS", 1)
    made = [key_store.create(KeyTerms(name=f"k{i}")) for i in range(9)]
    made.sort(key=lambda one: one.view.id)
    reader = KeyReader()
    look(reader, engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE state SET keys_version = keys_version + 1")
    for _ in range(3):
        with reading(engine) as connection:
            reader.look(connection)
    assert not reader.whole
    # This change follows one that is not listed, the next one follows this.
    key_store.rotate(made[0].view.id, 60)
    with reading(engine) as connection:
        reader.look(connection)
    key_store.revoke(made[-1].view.id)
    with reading(engine) as connection:
        reader.look(connection)
    assert not reader.whole
    assert reader.keyring.find(made[-1].secret, hand()) is None
    assert reader.keyring.find(made[0].secret, hand()) is not None


def test_versions_are_in_the_order_of_commits(
    connected: Callable[[], sa.Engine], hand: Hand
) -> None:
    """Who reads between two changes that overlap misses neither."""
    one, two = (
        KeyStore(connected(), clock=hand, entropy=random.Random(i).randbytes) for i in (1, 2)
    )
    first, second = one.create(KeyTerms(name="a")), two.create(KeyTerms(name="b"))
    reader, engine = KeyReader(), connected()
    look(reader, engine)
    with ThreadPoolExecutor(1) as threads:
        with one._engine.begin() as connection:
            ended = sa.update(tables.keys).where(tables.keys.c.id == first.view.id)
            connection.execute(ended.values(revoked_at=hand()))
            one._note_change(connection, first.view.id)
            # It cannot commit, and so has no version, before the first one has committed.
            revoking = threads.submit(two.revoke, "b")
            with pytest.raises(TimeoutError):
                revoking.result(0.2)
            look(reader, engine)
            assert reader.keyring.find(first.secret, hand()) is not None
            assert reader.keyring.find(second.secret, hand()) is not None
        revoking.result()
    look(reader, engine)
    assert reader.keyring.find(first.secret, hand()) is None
    assert reader.keyring.find(second.secret, hand()) is None
    with reading(engine) as connection:
        versions = connection.scalars(sa.select(key_changes.c.version)).all()
    assert sorted(versions) == list(range(1, 6))


_KEPT = ("state", "key_changes", "keys", "secrets")
_Rows = dict[str, list[dict[str, object]]]


class Place:
    """A ledger that operators change, and two servers that look at it at odd moments."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.hand = Hand()
        # Random bytes never repeat, also in a ledger that is put back to a copy.
        self.bytes = random.Random(0).randbytes
        self.store = KeyStore(engine, clock=self.hand, entropy=self.bytes)
        self.servers = (KeyReader(), KeyReader())
        self.secrets: list[str] = []
        self.put_back({"state": [{"id": 1, "keys_version": 1}]})
        self.kept: _Rows = {}
        self.copy(0)

    def create(self, _: int) -> None:
        self.secrets.append(self.store.create(KeyTerms(name=f"n{self.bytes(6).hex()}")).secret)

    def rotate(self, which: int) -> None:
        good = [view.id for view in self.store.all() if view.revoked_at is None]
        if good:
            self.secrets.append(self.store.rotate(good[which % len(good)], 3).secret)

    def revoke(self, which: int) -> None:
        found = list(self.store.all())
        if found:
            self.store.revoke(found[which % len(found)].id)

    def look(self, which: int) -> None:
        look(self.servers[which % 2], self.engine)

    def slice(self, which: int) -> None:
        with reading(self.engine) as connection:
            self.servers[which % 2].look(connection)

    def unlisted(self, _: int) -> None:
        """As an older version makes a change."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE state SET keys_version = keys_version + 1")

    def copy(self, _: int) -> None:
        with reading(self.engine) as connection:
            for name in _KEPT:
                rows = connection.execute(sa.select(metadata.tables[name])).mappings()
                self.kept[name] = [dict(row) for row in rows]

    def replace(self, _: int) -> None:
        self.put_back(self.kept)

    def put_back(self, rows: _Rows) -> None:
        with self.engine.begin() as connection:
            for name in reversed(_KEPT):
                connection.execute(sa.delete(metadata.tables[name]))
            for name in _KEPT:
                if rows.get(name):
                    connection.execute(sa.insert(metadata.tables[name]), rows[name])

    def found(self, server: KeyReader) -> list[object]:
        """What a server knows: whose each secret is, now and later, and how many entries."""
        ring = server.keyring
        found: list[object] = [sum(map(len, part)) for part in (ring._by_id, ring._by_digest)]
        for later_s in (0, 2, 100):
            for secret in self.secrets:
                key = ring.find(secret, self.hand() + later_s)
                assert key is None or ring.terms(key.id) == key.terms
                found.append(key and (key.id, key.terms, key.expires_at))
        return found


_STEPS = {
    "create": Place.create, "rotate": Place.rotate, "revoke": Place.revoke, "look": Place.look,
    "slice": Place.slice, "unlisted": Place.unlisted, "copy": Place.copy, "replace": Place.replace,
}  # fmt: skip


@given(
    steps=st.lists(st.tuples(st.sampled_from(sorted(_STEPS)), st.integers(0, 5)), max_size=40),
    most=st.integers(1, 4),
    listed=st.integers(1, 5),
)
# The ledger is put back to a copy, and as many changes are made to it as were lost.
@example(
    steps=[("create", 0), ("create", 0), ("copy", 0), ("revoke", 0), ("look", 0), ("replace", 0),
           ("revoke", 1)],
    most=4, listed=5,
)  # fmt: skip
@settings(
    max_examples=examples(60), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_whatever_happens_servers_know_the_keys(
    engine: sa.Engine, steps: Sequence[tuple[str, int]], most: int, listed: int
) -> None:
    """They know what a server knows that starts now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_reader, "_SLICE_KEYS", most)
        patch.setattr(keys, "MOST_CHANGES", listed)
        place = Place(engine)
        for what, which in steps:
            place.hand.now_s += 1
            _STEPS[what](place, which)
        fresh = KeyReader()
        look(fresh, engine)
        for server in place.servers:
            look(server, engine)
            assert place.found(server) == place.found(fresh)
    with reading(engine) as connection:
        assert len(connection.execute(sa.select(key_changes)).all()) <= listed + 1


def test_an_older_ledger_is_upgraded_with_its_keys(empty_url: str, hand: Hand) -> None:
    """Servers then read one key for the first change of one."""
    engine = connect(parse_url(empty_url))
    upgrade(engine, to="0001")
    assert check(engine) == ["its tables are at step 0001, this program needs 0002"]
    old = KeyStore(engine, clock=hand, entropy=random.Random(1).randbytes)
    many(engine, 2)
    upgrade(engine)
    assert check(engine) == []
    reader = KeyReader()
    look(reader, engine)
    known = reader._reading
    made = old.create(KeyTerms(name="new"))
    look(reader, engine)
    assert reader.keyring.find(made.secret, hand()) is not None
    assert reader._reading == known
    engine.dispose()


async def test_the_event_loop_turns_while_a_server_starts(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million keys take many seconds."""
    began, turned = threading.Event(), threading.Event()
    looks = KeyReader.look

    def wait(self: KeyReader, connection: sa.Connection) -> None:
        began.set()
        assert turned.wait(60)
        looks(self, connection)

    monkeypatch.setattr(KeyReader, "look", wait)

    async def turn() -> None:
        await asyncio.to_thread(began.wait)
        turned.set()

    turning = asyncio.create_task(turn())
    async with team(engine, tmp_path):
        await turning
