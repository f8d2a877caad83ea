"""Ledgers of both kinds, and what tests of them share."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

import services
from afterword.core.account import UsageRecord
from afterword.ledger.database import connect, parse_url, prepare, sqlite_url
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


@pytest.fixture(scope="session")
def postgres() -> Iterator[services.Postgres]:
    with services.postgres() as server:
        template = connect(parse_url(server.url("template1")))
        prepare(template)
        template.dispose()
        yield server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with services.redis() as url:
        yield url


_numbers = itertools.count()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A ledger's database without a record, of each kind."""
    if request.param == "sqlite":
        return str(sqlite_url(tmp_path / "ledger.db"))
    server: services.Postgres = request.getfixturevalue("postgres")
    name = f"t{next(_numbers)}"
    server.sql(f"CREATE DATABASE {name}")
    return server.url(name)


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
