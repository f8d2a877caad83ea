"""A server with a ledger in this process, on toy models, with clocks that tests set."""

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
from afterword.core.alias import Alias
from afterword.core.limits import Limits
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.toy import toy_engine
from afterword.http.app import Access, create_app
from afterword.http.lifecycle import Lifecycle
from afterword.http.proxies import Network
from afterword.http.scope import CacheScope
from afterword.ledger.access import Clocks, Entrance, Policy
from afterword.ledger.keys import KeyStore
from afterword.ledger.open_ledger import LedgerOptions, OpenLedger, open_ledger
from afterword.ledger.process import ProcessIdentity
from afterword.ledger.store import UsageStore
from ledger.values import NOW, Hand
from support.asgi import Client

_names = itertools.count()


@dataclass
class Team:
    """A running server. ``slept`` are the waits of wrong keys, in seconds."""

    client: Client
    ledger: OpenLedger
    database: sa.Engine
    keys: KeyStore
    hand: Hand
    engine: BatchingEngine
    slept: list[float] = field(default_factory=list)

    def key(self, name: str = "k", **terms: Any) -> Client:
        """Returns a client with a new key that the server knows."""
        made = self.keys.create(KeyTerms(name=name, **terms))
        self.refresh()
        return self.client.with_key(made.secret)

    def refresh(self) -> None:
        """Wait until the server has read the keys again."""
        self.ledger.writer.refresh().result()

    async def records(self) -> list[UsageRecord]:
        """Returns the records, once all are in the database."""
        while self.ledger.access.figures().pending_writes:
            self.ledger.writer.work.set()
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
    cache_scope: CacheScope = "key",
    proxies: tuple[Network, ...] = (),
    **policy: Any,
) -> AsyncIterator[Team]:
    """A server that starts and ends as a real one does."""
    hand, slept = Hand(), list[float]()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0)

    entropy = random.Random(next(_names)).randbytes
    engine = toy()
    options = LedgerOptions(folder=folder, redis=redis, policy=Policy(entrance=entrance, **policy))
    identity = ProcessIdentity(f"p{entropy(6).hex()}", "host", 1)
    clocks = Clocks(hand, hand, sleep)
    async with open_ledger(database, options, identity, clocks=clocks, entropy=entropy) as ledger:
        catalog = Catalog(
            [ServedModel("toy", engine, 1), ServedModel("other", engine, 1)],
            {"alias": Alias("toy")},
        )
        app = create_app(
            CompletionService(catalog, limits or Limits(), clock=hand, entropy=entropy),
            lifecycle=Lifecycle(),
            clock=hand,
            entropy=entropy,
            public=playground.routes(),
            access=Access(
                ledger=ledger.access,
                queries=lambda: ledger.queries,
                guarded=guarded,
                cache_scope=cache_scope,
                proxies=proxies,
            ),
        )
        keys = KeyStore(database, clock=hand, entropy=entropy)
        yield Team(Client(app), ledger, database, keys, hand, engine, slept)
    await engine.aclose()


__all__ = ["NOW", "Team", "team"]
