"""Measures the time that the ledger adds to a request, and checks its limits under a crowd.

Runs on the toy model in this process, so that nearly all the time is the ledger's:
``python benchmarks/metering.py [--database URL] [--redis URL]``. Without a URL it makes a SQLite
file in a temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

import tests_path  # noqa: F401 - where support is
from afterword.cli.serve import SWITCH_INTERVAL_S
from afterword.core.account import Ask, KeyTerms, Spent
from afterword.ledger.database import open_database
from afterword.ledger.keys import KeyStore
from support.crowd import Place, crowd, serving

REPEATS = 2000
PAUSE_S = 0.001
SPENT = Spent(
    status="answered", prompt_tokens=20, cached_tokens=0, completion_tokens=30,
    first_token_ms=5.0, duration_ms=50.0,
)  # fmt: skip


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
        key_store = KeyStore(database, clock=time.time, entropy=os.urandom)
        secrets = {
            name: key_store.create(KeyTerms(name=name, **given)).secret
            for name, given in terms.items()
        }
        database.dispose()
        if server.ledger is None:
            raise RuntimeError("there is nothing to measure")
        await asyncio.wrap_future(server.ledger.writer.refresh())
        ledger = server.ledger.access
        for name, secret in secrets.items():
            times: list[float] = []
            for i in range(REPEATS):
                ask = Ask(id=f"{name}-{i}", model="toy", user="u", stream=True, most_tokens=100)
                began_s = time.perf_counter()
                principal = await ledger.authenticate(secret, "127.0.0.1")
                reservation = await ledger.reserve(principal, ask)
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
