"""The clerk: what a turn does, in which order, and what the dead leave behind."""

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
from afterword.ledger.clerk import DEAD_S, Clerk, Identity
from afterword.ledger.database import check
from afterword.ledger.journal import Journal
from afterword.ledger.keys import KeyBook
from afterword.ledger.quota import Claim
from afterword.ledger.records import processes, reservations, spending
from afterword.ledger.store import UsageStore
from ledger.values import Hand, record

MakeClerk = Callable[..., Clerk]


@pytest.fixture
def make_clerk(
    connected: Callable[[], sa.Engine], tmp_path: Path, hand: Hand
) -> Iterator[MakeClerk]:
    """Clerks of one database, each of a process and a machine of its own."""
    made: list[Clerk] = []

    def make(
        name: str,
        *,
        journals: Path | None = None,
        on_folded: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> Clerk:
        folder = journals or tmp_path / name
        folder.mkdir(exist_ok=True)
        clerk = Clerk(
            connected(), Identity(name, "host", 1), folder, clock=hand, on_folded=on_folded
        )
        made.append(clerk)
        return clerk

    yield make
    for clerk in made:
        if clerk._connection is not None:
            clerk._connection.close()


def claim(request_id: str, tokens: int) -> Claim:
    return Claim(id=request_id, key_id="k", period="2026-11", tokens=tokens, budget_tokens=100)


def reserved(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.sum(spending.c.reserved))) or 0


def test_what_ended_is_folded_before_a_claim_is_refused(make_clerk: MakeClerk) -> None:
    """Whoever has an answer can have at once what it did not use."""
    told: list[str] = []
    clerk = make_clerk("p", on_folded=told.extend)
    first = clerk.claim(claim("a", 100))
    clerk.turn()
    assert first.result() is None
    second = clerk.claim(claim("b", 60))
    clerk.ended(record("a", tokens=40))
    clerk.turn()
    assert second.result() is None
    assert told == ["a"]
    third = clerk.claim(claim("c", 1))
    clerk.turn()
    assert third.result() == 0


def test_a_claim_that_nobody_waits_for_takes_nothing(
    make_clerk: MakeClerk, engine: sa.Engine
) -> None:
    clerk = make_clerk("p")
    assert clerk.claim(claim("a", 100)).cancel()
    taken = clerk.claim(claim("b", 100))
    clerk.turn()
    assert taken.result() is None
    clerk.released("b")
    clerk.turn()
    assert reserved(engine) == 0


def test_keys_are_looked_at_when_it_is_time(
    make_clerk: MakeClerk, book: KeyBook, hand: Hand
) -> None:
    clerk = make_clerk("p")
    clerk.turn()
    made = book.create(KeyTerms(name="a"))
    clerk.turn()
    assert clerk.keyring.find(made.secret, hand()) is None
    hand.now_s += 0.5
    clerk.turn()
    assert clerk.keyring.find(made.secret, hand()) is not None


def test_a_process_that_is_silent_for_long_is_dead(
    make_clerk: MakeClerk, engine: sa.Engine, hand: Hand
) -> None:
    """On another machine, whose journal nobody here can see; and it can come back."""
    silent, alive = make_clerk("silent"), make_clerk("alive")
    silent.claim(claim("a", 70))
    silent.turn()
    alive.turn()
    for _ in range(6):
        hand.now_s += DEAD_S / 6 - 0.1
        alive.turn()
    assert reserved(engine) == 70
    for _ in range(2):
        hand.now_s += 6
        alive.turn()
    assert reserved(engine) == 0
    late = silent.claim(claim("late", 10))
    silent.turn()
    assert late.result() is None
    assert reserved(engine) == 80
    silent.released("late")
    silent.turn()
    assert reserved(engine) == 70
    silent.ended(record("a", tokens=30))
    silent.turn()
    assert reserved(engine) == 0
    assert check(engine) == []


def test_a_process_that_says_that_it_lives_is_not_dead(
    make_clerk: MakeClerk, engine: sa.Engine, hand: Hand
) -> None:
    one, other = make_clerk("one"), make_clerk("other")
    one.claim(claim("a", 70))
    for _ in range(20):
        one.turn()
        other.turn()
        hand.now_s += 5
    assert reserved(engine) == 70


def test_the_next_process_takes_over(
    make_clerk: MakeClerk, engine: sa.Engine, tmp_path: Path
) -> None:
    """In its first turn: answered requests, lost ones, and reservations of both."""
    journals = tmp_path / "shared"
    dead = make_clerk("dead", journals=journals)
    journal = Journal(journals, "dead", limit_bytes=64 << 20)
    journal.__enter__()
    for name in ("answered", "running"):
        dead.claim(claim(name, 40))
        journal.admit(replace(record(name, tokens=0), status="lost"))
    dead.turn()
    journal.settle(record("answered", tokens=30))
    for segment in journal._segments:
        os.close(segment.descriptor)
    assert reserved(engine) == 80
    make_clerk("next", journals=journals).turn()
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


def test_leaving_leaves_nothing(make_clerk: MakeClerk, engine: sa.Engine) -> None:
    clerk = make_clerk("p")
    clerk.claim(claim("a", 40))
    clerk.turn()
    clerk.ended(record("b"))
    clerk.leave()
    with engine.connect() as connection:
        assert connection.execute(sa.select(processes)).all() == []
        assert connection.execute(sa.select(reservations)).all() == []
    assert [one.id for one in UsageStore(engine).requests(UsageQuery())] == ["b"]


def test_a_database_that_is_away_is_asked_again_only_after_a_while(
    make_clerk: MakeClerk, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    clerk = make_clerk("p")
    clerk.turn()
    assert clerk.reachable
    tried = threading.Semaphore(0)

    def refuse() -> None:
        tried.release()
        raise sa.exc.OperationalError("", {}, ConnectionError("gone"))

    with monkeypatch.context() as patch:
        patch.setattr(clerk, "_transaction", refuse)
        clerk.ended(record("a"))
        asked = clerk.claim(claim("b", 1))
        clerk.turn()
        assert isinstance(asked.exception(), LedgerUnavailable)
        assert tried.acquire(blocking=False)
        later = clerk.claim(claim("c", 1))
        clerk.turn()
        assert isinstance(later.exception(), LedgerUnavailable)
        assert not tried.acquire(blocking=False)
        assert not clerk.reachable
        assert clerk.unfolded == 1
    hand.now_s += 1
    clerk.turn()
    assert clerk.reachable
    assert clerk.unfolded == 0


def test_a_claim_whose_end_nobody_knows_is_given_back(
    make_clerk: MakeClerk, engine: sa.Engine, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database carried it out, and the connection broke before it said so."""
    clerk = make_clerk("p")
    clerk.turn()
    exactly = clerk._transaction

    @contextmanager
    def break_afterwards() -> Iterator[sa.Connection]:
        with exactly() as connection:
            yield connection
        raise sa.exc.OperationalError("", {}, ConnectionError('to "/a/socket" broke'))

    with monkeypatch.context() as patch:
        patch.setattr(clerk, "_transaction", break_afterwards)
        asked = clerk.claim(claim("a", 60))
        clerk.turn()
    assert isinstance(asked.exception(), LedgerUnavailable)
    assert reserved(engine) == 60
    hand.now_s += 1
    clerk.turn()
    assert reserved(engine) == 0


def test_the_log_has_no_paths(
    make_clerk: MakeClerk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clerk = make_clerk("p")

    def refuse() -> None:
        raise sa.exc.OperationalError("SELECT", {}, ConnectionError('server on "/a/socket" failed'))

    monkeypatch.setattr(clerk, "_transaction", refuse)
    clerk.turn()
    assert 'the database is away: server on "…" failed' in caplog.text
    assert "/a/socket" not in caplog.text


def test_a_database_that_does_not_answer_is_not_reachable(
    make_clerk: MakeClerk, hand: Hand
) -> None:
    """A turn that hangs says nothing; its silence does."""
    clerk = make_clerk("p")
    clerk.turn()
    hand.now_s += 6
    assert not clerk.reachable
