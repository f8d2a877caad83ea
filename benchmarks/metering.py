"""Measures the time that the ledger adds to a request, and checks its limits under a crowd.

Runs on the toy model in this process, so that nearly all the time is the ledger's:
``python benchmarks/metering.py [--database URL] [--redis URL]``. Without a URL it makes a SQLite
file in a temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
import uvloop
from starlette.types import ASGIApp, Message

from afterword.cli.serve import SWITCH_INTERVAL_S
from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.service import CompletionService
from afterword.core.account import Ask, KeyTerms, Spent, UsageQuery
from afterword.core.limits import Limits
from afterword.engine.toy import toy_engine
from afterword.http.app import Access, create_app
from afterword.http.lifecycle import Lifecycle
from afterword.ledger.clerk import Identity
from afterword.ledger.database import check
from afterword.ledger.keys import KeyBook
from afterword.ledger.meter import Clocks, Policy
from afterword.ledger.opening import LedgerOptions, OpenLedger, open_database, open_ledger
from afterword.ledger.records import reservations
from afterword.ledger.store import UsageStore

CLOCKS = Clocks(time.monotonic, time.time)
REPEATS = 2000
PAUSE_S = 0.001
SPENT = Spent(
    status="answered", prompt_tokens=20, cached_tokens=0, completion_tokens=30,
    first_token_ms=5.0, duration_ms=50.0,
)  # fmt: skip
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
                    Identity(f"p{os.urandom(6).hex()}", "here", os.getpid()),
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
            access=Access() if ledger is None else Access(ledger=ledger.meter, books=ledger.books),
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
    book = KeyBook(database, clock=time.time, entropy=os.urandom)
    most = ALLOWED * EACH_TOKENS + EACH_TOKENS - 1
    kinds: Sequence[dict[str, Any]] = ({"rpm": ALLOWED}, {"tpm": most}, {"budget_tokens": most})
    secrets = [book.create(KeyTerms(name=f"k{i}", **kinds[i % 3])).secret for i in range(keys)]
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


async def overhead_ms(place: Place) -> dict[str, float]:
    """Returns median milliseconds of a request's ledger calls: authenticate, reserve, settle."""
    many = 10**12
    terms: dict[str, dict[str, Any]] = {
        "a key": {},
        "a key with rpm and tpm": {"rpm": many, "tpm": many},
        "a key with rpm, tpm and a budget": {"rpm": many, "tpm": many, "budget_tokens": many},
    }
    median: dict[str, float] = {}
    async with serving(place) as server:
        database = open_database(place.folder, place.database)
        book = KeyBook(database, clock=time.time, entropy=os.urandom)
        secrets = {
            name: book.create(KeyTerms(name=name, **given)).secret for name, given in terms.items()
        }
        database.dispose()
        if server.ledger is None:
            raise RuntimeError("there is nothing to measure")
        await asyncio.wrap_future(server.ledger.clerk.refresh())
        meter = server.ledger.meter
        for name, secret in secrets.items():
            times: list[float] = []
            for i in range(REPEATS):
                ask = Ask(id=f"{name}-{i}", model="toy", user="u", stream=True, most_tokens=100)
                began_s = time.perf_counter()
                principal = await meter.authenticate(secret, "127.0.0.1")
                reservation = await meter.reserve(principal, ask)
                await reservation.settle(SPENT)
                times.append(time.perf_counter() - began_s)
                # Other tasks get the loop meanwhile, as during a request.
                await asyncio.sleep(PAUSE_S)
            median[name] = statistics.median(times) * 1000
    return median


def main() -> None:
    """Print the figures."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database")
    parser.add_argument("--redis")
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = given.database or f"sqlite:///{folder}/ledger.db"
        place = Place(Path(folder), database, given.redis)
        for name, ms in uvloop.run(overhead_ms(place)).items():
            print(f"{name}: {ms:.3f} ms")
        came = uvloop.run(
            crowd(place, servers=given.servers, keys=given.keys, requests=given.requests,
                  clients=given.clients)
        )  # fmt: skip
        for name, value in msgspec.structs.asdict(came).items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
