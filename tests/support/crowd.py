"""Many clients at once against exact limits, on servers with a ledger in this process."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.types import ASGIApp, Message

from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.service import CompletionService
from afterword.core.account import KeyTerms, UsageQuery
from afterword.core.limits import Limits
from afterword.engine.toy import toy_engine
from afterword.http.app import Access, create_app
from afterword.http.lifecycle import Lifecycle
from afterword.ledger.access import Clocks, Policy
from afterword.ledger.audit import check
from afterword.ledger.database import open_database
from afterword.ledger.keys import KeyStore
from afterword.ledger.open_ledger import LedgerOptions, OpenLedger, open_ledger
from afterword.ledger.process import ProcessIdentity
from afterword.ledger.store import UsageStore
from afterword.ledger.tables import reservations

CLOCKS = Clocks(time.monotonic, time.time)
EACH_TOKENS = 13
"""What a request takes: one token of prompt, twelve made."""
ALLOWED = 7


class Place(msgspec.Struct, frozen=True):
    """Where a ledger is kept."""

    folder: Path
    database: str | None = None
    redis: str | None = None


class App(msgspec.Struct, frozen=True):
    """A server in this process; ``ledger`` None: without one."""

    app: ASGIApp
    ledger: OpenLedger | None

    async def post(self, body: bytes, secret: str | None = None) -> int:
        """One completion; its status."""
        headers = [(b"host", b"localhost")]
        if secret is not None:
            headers.append((b"authorization", b"Bearer " + secret.encode()))
        scope = {
            "type": "http", "method": "POST", "path": "/v1/completions", "headers": headers,
            "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "asgi": {"version": "3.0"},
        }  # fmt: skip
        status = 0
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if asked:
                await asyncio.Event().wait()
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)

        await self.app(scope, receive, send)
        return status


@asynccontextmanager
async def serving(place: Place | None, *, slots: int = 16) -> AsyncIterator[App]:
    """A toy model behind the whole HTTP application."""
    engine = toy_engine(slots=slots, max_waiting=10_000, check=False)
    async with AsyncExitStack() as opened:
        opened.push_async_callback(engine.aclose)
        ledger = None
        if place is not None:
            options = LedgerOptions(
                folder=place.folder, database=place.database, redis=place.redis, policy=Policy()
            )
            ledger = await opened.enter_async_context(
                open_ledger(
                    open_database(place.folder, place.database),
                    options,
                    ProcessIdentity(f"p{os.urandom(6).hex()}", "here", os.getpid()),
                    clocks=CLOCKS,
                    entropy=os.urandom,
                )
            )
        service = CompletionService(
            Catalog([ServedModel("toy", engine, 1)]), Limits(), clock=time.time, entropy=os.urandom
        )
        app = create_app(
            service,
            lifecycle=Lifecycle(),
            clock=time.monotonic,
            entropy=os.urandom,
            access=Access()
            if ledger is None
            else Access(ledger=ledger.access, queries=lambda: ledger.queries),
        )
        yield App(app, ledger)


def body_of(max_tokens: int) -> bytes:
    """A request that makes exactly so many tokens."""
    return json.dumps(
        {"model": "toy", "prompt": "a", "max_tokens": max_tokens, "ignore_eos": True}
    ).encode()


class Crowd(msgspec.Struct, frozen=True):
    """What a crowd got, and what the ledger says of it."""

    admitted: int
    refused: int
    allowed: int
    recorded: int
    tokens: int
    left: int
    wrong: Sequence[str]
    wall_s: float


async def crowd(place: Place, *, servers: int, keys: int, requests: int, clients: int) -> Crowd:
    """``requests`` by ``clients`` with ``keys``, each of which is allowed seven of its ten.

    A third of the keys is limited by requests a minute, a third by tokens, a third by a budget.
    Several servers share the database, and Redis if there is one.
    """
    database = open_database(place.folder, place.database)
    key_store = KeyStore(database, clock=time.time, entropy=os.urandom)
    most = ALLOWED * EACH_TOKENS + EACH_TOKENS - 1
    kinds: Sequence[dict[str, Any]] = ({"rpm": ALLOWED}, {"tpm": most}, {"budget_tokens": most})
    secrets = [key_store.create(KeyTerms(name=f"k{i}", **kinds[i % 3])).secret for i in range(keys)]
    waiting = itertools.chain.from_iterable([secrets] * (requests // keys))
    body = body_of(EACH_TOKENS - 1)
    statuses: Counter[int] = Counter()
    async with AsyncExitStack() as opened:
        apps = [
            await opened.enter_async_context(
                serving(msgspec.structs.replace(place, folder=place.folder / f"s{i}"))
            )
            for i in range(servers)
        ]

        async def client(number: int) -> None:
            for secret in waiting:
                statuses[await apps[number % servers].post(body, secret)] += 1

        began_s = time.monotonic()
        await asyncio.gather(*(client(i) for i in range(clients)))
        wall_s = time.monotonic() - began_s
    records = UsageStore(database).requests(UsageQuery(), most=10 * requests)
    with database.connect() as connection:
        left = connection.scalar(sa.select(sa.func.count()).select_from(reservations)) or 0
    wrong = check(database)
    database.dispose()
    if statuses.keys() - {200, 429}:
        raise RuntimeError(f"unexpected answers: {statuses}")
    return Crowd(
        admitted=statuses[200],
        refused=statuses[429],
        allowed=keys * ALLOWED,
        recorded=len(records),
        tokens=sum(one.prompt_tokens + one.completion_tokens for one in records),
        left=left,
        wrong=wrong,
        wall_s=wall_s,
    )
