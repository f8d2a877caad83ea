"""The ledger writer: the order of a flush, and the journals of dead processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from afterword.core.account import KeyTerms, UsageQuery
from afterword.core.errors import LedgerUnavailable
from afterword.ledger.audit import check
from afterword.ledger.journal import Journal
from afterword.ledger.keys import KeyStore
from afterword.ledger.process import ProcessIdentity
from afterword.ledger.record_writer import Claim
from afterword.ledger.silence import DEAD_S
from afterword.ledger.store import UsageStore
from afterword.ledger.tables import processes, reservations, spending
from afterword.ledger.writer import LedgerWriter
from ledger.values import Hand, record

MakeWriter = Callable[..., LedgerWriter]


@pytest.fixture
def make_writer(
    connected: Callable[[], sa.Engine], tmp_path: Path, hand: Hand
) -> Iterator[MakeWriter]:
    """Makes writers of one database, each on a process and a machine of its own."""
    made: list[LedgerWriter] = []

    def make(
        name: str,
        *,
        journals: Path | None = None,
        on_written: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> LedgerWriter:
        folder = journals or tmp_path / name
        folder.mkdir(exist_ok=True)
        writer = LedgerWriter(
            connected(), ProcessIdentity(name, "host", 1), folder, clock=hand, on_written=on_written
        )
        made.append(writer)
        return writer

    yield make
    for writer in made:
        if writer._connection is not None:
            writer._connection.close()


def claim(request_id: str, tokens: int) -> Claim:
    return Claim(id=request_id, key_id="k", period="2026-11", tokens=tokens, budget_tokens=100)


def reserved(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.sum(spending.c.reserved))) or 0


def test_what_ended_is_written_before_a_claim_is_refused(make_writer: MakeWriter) -> None:
    """A client with an answer can use at once what the request did not use."""
    told: list[str] = []
    writer = make_writer("p", on_written=told.extend)
    first = writer.claim(claim("a", 100))
    writer.flush()
    assert first.result() is None
    second = writer.claim(claim("b", 60))
    writer.ended(record("a", tokens=40))
    writer.flush()
    assert second.result() is None
    assert told == ["a"]
    third = writer.claim(claim("c", 1))
    writer.flush()
    assert third.result() == 0


def test_a_claim_that_nobody_waits_for_takes_nothing(
    make_writer: MakeWriter, engine: sa.Engine
) -> None:
    writer = make_writer("p")
    assert writer.claim(claim("a", 100)).cancel()
    taken = writer.claim(claim("b", 100))
    writer.flush()
    assert taken.result() is None
    writer.released("b")
    writer.flush()
    assert reserved(engine) == 0


def test_keys_are_looked_at_when_it_is_time(
    make_writer: MakeWriter, key_store: KeyStore, hand: Hand
) -> None:
    writer = make_writer("p")
    writer.flush()
    made = key_store.create(KeyTerms(name="a"))
    writer.flush()
    assert writer.keyring.find(made.secret, hand()) is None
    hand.now_s += 0.5
    writer.flush()
    assert writer.keyring.find(made.secret, hand()) is not None


def test_a_process_that_is_silent_for_long_is_dead(
    make_writer: MakeWriter, engine: sa.Engine, hand: Hand
) -> None:
    """It is on another machine, so its journal is not here. It can come back."""
    silent, alive = make_writer("silent"), make_writer("alive")
    silent.claim(claim("a", 70))
    silent.flush()
    alive.flush()
    for _ in range(6):
        hand.now_s += DEAD_S / 6 - 0.1
        alive.flush()
    assert reserved(engine) == 70
    for _ in range(2):
        hand.now_s += 6
        alive.flush()
    assert reserved(engine) == 0
    late = silent.claim(claim("late", 10))
    silent.flush()
    assert late.result() is None
    assert reserved(engine) == 80
    silent.released("late")
    silent.flush()
    assert reserved(engine) == 70
    silent.ended(record("a", tokens=30))
    silent.flush()
    assert reserved(engine) == 0
    assert check(engine) == []


def test_a_process_that_says_that_it_lives_is_not_dead(
    make_writer: MakeWriter, engine: sa.Engine, hand: Hand
) -> None:
    one, other = make_writer("one"), make_writer("other")
    one.claim(claim("a", 70))
    for _ in range(20):
        one.flush()
        other.flush()
        hand.now_s += 5
    assert reserved(engine) == 70


def test_the_next_process_takes_over(
    make_writer: MakeWriter, engine: sa.Engine, tmp_path: Path
) -> None:
    """The first flush takes over answered and lost requests, and the reservations of both."""
    journals = tmp_path / "shared"
    dead = make_writer("dead", journals=journals)
    journal = Journal(journals, "dead", limit_bytes=64 << 20)
    journal.__enter__()
    for name in ("answered", "running"):
        dead.claim(claim(name, 40))
        journal.admit(replace(record(name, tokens=0), status="lost"))
    dead.flush()
    journal.settle(record("answered", tokens=30))
    for segment in journal._segments:
        os.close(segment.descriptor)
    assert reserved(engine) == 80
    make_writer("next", journals=journals).flush()
    assert reserved(engine) == 0
    found = {one.id: one for one in UsageStore(engine).requests(UsageQuery())}
    assert {name: one.status for name, one in found.items()} == {
        "answered": "answered", "running": "lost",
    }  # fmt: skip
    assert found["answered"].completion_tokens == 15
    assert list(journals.iterdir()) == []
    with engine.connect() as connection:
        assert connection.scalars(sa.select(processes.c.id)).all() == ["next"]
    assert check(engine) == []


def test_leaving_leaves_nothing(make_writer: MakeWriter, engine: sa.Engine) -> None:
    writer = make_writer("p")
    writer.claim(claim("a", 40))
    writer.flush()
    writer.ended(record("b"))
    writer.sign_off()
    with engine.connect() as connection:
        assert connection.execute(sa.select(processes)).all() == []
        assert connection.execute(sa.select(reservations)).all() == []
    assert [one.id for one in UsageStore(engine).requests(UsageQuery())] == ["b"]


def test_a_database_that_is_away_is_asked_again_only_after_a_while(
    make_writer: MakeWriter, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = make_writer("p")
    writer.flush()
    assert writer.reachable
    tried = threading.Semaphore(0)

    def refuse() -> None:
        tried.release()
        raise sa.exc.OperationalError("", {}, ConnectionError("gone"))

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_transaction", refuse)
        writer.ended(record("a"))
        asked = writer.claim(claim("b", 1))
        writer.flush()
        assert isinstance(asked.exception(), LedgerUnavailable)
        assert tried.acquire(blocking=False)
        later = writer.claim(claim("c", 1))
        writer.flush()
        assert isinstance(later.exception(), LedgerUnavailable)
        assert not tried.acquire(blocking=False)
        assert not writer.reachable
        assert writer.pending_writes == 1
    hand.now_s += 1
    writer.flush()
    assert writer.reachable
    assert writer.pending_writes == 0


def test_a_claim_whose_end_nobody_knows_is_given_back(
    make_writer: MakeWriter, engine: sa.Engine, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database committed, and the connection broke before the answer."""
    writer = make_writer("p")
    writer.flush()
    exactly = writer._transaction

    @contextmanager
    def break_afterwards() -> Iterator[sa.Connection]:
        with exactly() as connection:
            yield connection
        raise sa.exc.OperationalError("", {}, ConnectionError('to "/a/socket" broke'))

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_transaction", break_afterwards)
        asked = writer.claim(claim("a", 60))
        writer.flush()
    assert isinstance(asked.exception(), LedgerUnavailable)
    assert reserved(engine) == 60
    hand.now_s += 1
    writer.flush()
    assert reserved(engine) == 0


def test_the_log_has_no_paths(
    make_writer: MakeWriter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make_writer("p")

    def refuse() -> None:
        raise sa.exc.OperationalError("SELECT", {}, ConnectionError('server on "/a/socket" failed'))

    monkeypatch.setattr(writer, "_transaction", refuse)
    writer.flush()
    assert 'the database is away: server on "…" failed' in caplog.text
    assert "/a/socket" not in caplog.text


def test_a_database_that_does_not_answer_is_not_reachable(
    make_writer: MakeWriter, hand: Hand
) -> None:
    """A flush that hangs raises nothing, but it takes too long."""
    writer = make_writer("p")
    writer.flush()
    hand.now_s += 6
    assert not writer.reachable
