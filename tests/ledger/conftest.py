"""Ledgers of both kinds, and what tests of them share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from afterword.core.account import UsageRecord
from afterword.ledger.database import connect, parse_url, prepare
from afterword.ledger.keys import KeyBook

NOW = 1_795_600_000.0
"""2026-11-25 in UTC."""


class Hand:
    """A clock that is moved by hand."""

    def __init__(self, now_s: float = NOW) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def connected(database_url: str) -> Iterator[Callable[[], sa.Engine]]:
    """Makes engines of one database, as several servers have them."""
    engines: list[sa.Engine] = []

    def make() -> sa.Engine:
        engine = connect(parse_url(database_url))
        prepare(engine)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def engine(connected: Callable[[], sa.Engine]) -> sa.Engine:
    return connected()


@pytest.fixture
def book(engine: sa.Engine, hand: Hand) -> KeyBook:
    return KeyBook(engine, clock=hand, entropy=random.Random(3).randbytes)


def record(
    request_id: str, *, key_id: str | None = "k", tokens: int = 10, started_at: float = NOW
) -> UsageRecord:
    return UsageRecord(
        id=request_id, key_id=key_id, model="toy", user=None, stream=False, status="answered",
        prompt_tokens=tokens - tokens // 2, cached_tokens=0, completion_tokens=tokens // 2,
        started_at=started_at, first_token_ms=1.5, duration_ms=20.0,
    )  # fmt: skip
