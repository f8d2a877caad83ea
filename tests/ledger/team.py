"""A server with a ledger in this process, on toy models, with clocks that are moved by hand."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from afterword import playground
from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.service import CompletionService
from afterword.core.account import KeyTerms, UsageQuery, UsageRecord
from afterword.core.limits import Limits
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.toy import toy_engine
from afterword.http.app import Access, create_app
from afterword.http.lifecycle import Lifecycle
from afterword.ledger.clerk import Identity
from afterword.ledger.keys import KeyBook
from afterword.ledger.meter import Clocks, Entrance, Policy
from afterword.ledger.opening import LedgerOptions, OpenLedger, open_ledger
from afterword.ledger.store import UsageStore
from ledger.values import NOW, Hand
from support.asgi import Client

_names = itertools.count()


@dataclass
class Team:
    """A running server; ``slept`` are the waits that wrong keys had to stand."""

    client: Client
    ledger: OpenLedger
    database: sa.Engine
    book: KeyBook
    hand: Hand
    engine: BatchingEngine
    slept: list[float] = field(default_factory=list)

    def key(self, name: str = "k", **terms: Any) -> Client:
        """A client with a new key, which the server knows already."""
        made = self.book.create(KeyTerms(name=name, **terms))
        self.refresh()
        return self.client.with_key(made.secret)

    def refresh(self) -> None:
        """What was done in the database is known to the server."""
        self.ledger.clerk.refresh().result()

    async def records(self) -> list[UsageRecord]:
        """What the database has, when everything is in it."""
        while self.ledger.meter.figures().unfolded:
            self.ledger.clerk.work.set()
            await asyncio.sleep(0)
        return UsageStore(self.database).requests(UsageQuery())


@asynccontextmanager
async def team(
    database: sa.Engine,
    folder: Path,
    *,
    entrance: Entrance = "keys_if_any",
    guarded: bool = False,
    toy: Callable[[], BatchingEngine] = toy_engine,
    redis: str | None = None,
    limits: Limits | None = None,
    **policy: Any,
) -> AsyncIterator[Team]:
    """Start it, and end it as a server does."""
    hand, slept = Hand(), list[float]()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0)

    entropy = random.Random(next(_names)).randbytes
    engine = toy()
    options = LedgerOptions(folder=folder, redis=redis, policy=Policy(entrance=entrance, **policy))
    identity = Identity(f"p{entropy(6).hex()}", "host", 1)
    clocks = Clocks(hand, hand, sleep)
    async with open_ledger(database, options, identity, clocks=clocks, entropy=entropy) as ledger:
        catalog = Catalog(
            [ServedModel("toy", engine, 1), ServedModel("other", engine, 1)], {"alias": "toy"}
        )
        app = create_app(
            CompletionService(catalog, limits or Limits(), clock=hand, entropy=entropy),
            lifecycle=Lifecycle(),
            clock=hand,
            entropy=entropy,
            access=Access(ledger=ledger.meter, books=ledger.books, guarded=guarded),
            public=playground.routes(),
        )
        book = KeyBook(database, clock=hand, entropy=entropy)
        yield Team(Client(app), ledger, database, book, hand, engine, slept)
    await engine.aclose()


__all__ = ["NOW", "Team", "team"]
