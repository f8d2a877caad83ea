"""Measures what one to four front ends, their database and their Redis do for a request.

The upstream is the stub. Front ends share a PostgreSQL and a Redis, which this script starts:

    python benchmarks/gateway_scale.py [--fronts 1 2 4] [--requests 200]

Counts (commands, transactions, rows) do not depend on the machine. Processor time does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import psycopg
import redis as redis_client

import tests_path  # noqa: F401 - where support is
from afterword.core.account import KeyTerms
from afterword.ledger.database import connect, parse_url, prepare
from afterword.ledger.keys import KeyStore
from gateway import STUB
from processes import cpu_s
from standins.services import Postgres, postgres, redis
from support.load import request_bytes
from support.processes import free_port, running

MANY = 10**12
KINDS = {
    "a key": KeyTerms(name="a key"),
    "a key with limits": KeyTerms(name="a key with limits", rpm=MANY, tpm=MANY),
    "a key with a budget": KeyTerms(name="a key with a budget", budget_tokens=MANY),
}
TOGETHER = 16
SHORT, LONG = 1, 101
FLUSHED_S = 1.0


async def _ask(port: int, secret: str, tokens: int) -> None:
    body = {"model": "stub", "prompt": "a", "max_tokens": tokens, "stream": True}
    request = request_bytes(port, body).replace(
        b"\r\n", b"\r\nAuthorization: Bearer %b\r\n" % secret.encode(), 1
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read(-1)
    writer.close()
    if b"[DONE]" not in answer:
        raise RuntimeError(answer[-300:])


async def drive(ports: Sequence[int], secret: str, requests: int, tokens: int) -> None:
    """Ask all front ends in turn, with a few requests at once."""
    slots = asyncio.Semaphore(TOGETHER)

    async def one(at: int) -> None:
        async with slots:
            await _ask(ports[at % len(ports)], secret, tokens)

    await asyncio.gather(*map(one, range(requests)))


class Meters:
    """Reads counters of all processes."""

    def __init__(self, fronts: Sequence[int], server: Postgres, redis_url: str) -> None:
        self._fronts = fronts
        self._database = psycopg.connect(server.url("fronts"), autocommit=True)
        pid = Path(server.folder, "data", "postmaster.pid").read_text(encoding="ascii").split()[0]
        self._database_pid = int(pid)
        self._redis = redis_client.Redis(unix_socket_path=redis_url.partition("//")[2])

    def read(self) -> Mapping[str, float]:
        """Returns all counters, in microseconds and counts."""
        time.sleep(FLUSHED_S)  # records and statistics are written by then
        row = self._database.execute(
            "SELECT xact_commit, tup_inserted, tup_updated, tup_deleted FROM pg_stat_database "
            "WHERE datname = 'fronts'"
        ).fetchone()
        if row is None:
            raise RuntimeError("the database has no statistics")
        said = self._redis.info("all")
        return {
            "front us": sum(map(cpu_s, self._fronts)) * 1e6,
            "database us": cpu_s(self._database_pid) * 1e6,
            "transactions": row[0], "rows": sum(row[1:]),
            "redis us": (said["used_cpu_sys"] + said["used_cpu_user"]) * 1e6,
            "redis scripts": sum(
                said.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval")
            ),
            "redis commands": said["total_commands_processed"],
        }  # fmt: skip

    def idle(self) -> Mapping[str, float]:
        """Returns what is counted in a reading's own time without a request."""
        before = self.read()
        after = self.read()
        return {name: after[name] - before[name] for name in before}


def measure(ports: Sequence[int], meters: Meters, secret: str, requests: int, tokens: int) -> str:
    """Returns the counters of one request, as a line."""
    idle = meters.idle()
    before = meters.read()
    begun = time.perf_counter()
    asyncio.run(drive(ports, secret, requests, tokens))
    took_s = time.perf_counter() - begun
    after = meters.read()
    # The wait for the flush is in both; the load itself takes longer.
    share = (took_s + FLUSHED_S) / FLUSHED_S
    each = {name: (after[name] - before[name] - idle[name] * share) / requests for name in before}
    figures = "  ".join(f"{name} {value:,.2f}" for name, value in each.items())
    return f"{requests / took_s:7,.0f} req/s  {figures}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fronts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--requests", type=int, default=200)
    given = parser.parse_args()
    with ExitStack() as opened:
        server = opened.enter_context(postgres())
        redis_url = opened.enter_context(redis())
        server.sql("CREATE DATABASE fronts")
        database = connect(parse_url(server.url("fronts")))
        prepare(database)
        key_store = KeyStore(database, clock=time.time, entropy=os.urandom)
        secrets = {name: key_store.create(terms).secret for name, terms in KINDS.items()}
        database.dispose()
        upstream = free_port()
        opened.enter_context(running([sys.executable, str(STUB), str(upstream)], upstream))
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        pids: list[int] = []
        ports: list[int] = []
        for count in given.fronts:
            while len(ports) < count:
                port = free_port()
                command = [
                    sys.executable, "-m", "afterword", "serve", "--port", str(port),
                    "--model", f"stub=vllm+http://127.0.0.1:{upstream}/v1",
                    "--database", server.url("fronts"), "--redis", redis_url,
                    "--data-dir", str(Path(folder, str(len(ports)))), "--log-level", "warning",
                ]  # fmt: skip
                pids.append(opened.enter_context(running(command, port)))
                ports.append(port)
            meters = Meters(list(pids), server, redis_url)
            for name, secret in secrets.items():
                for tokens in (SHORT, LONG):
                    line = measure(ports, meters, secret, given.requests, tokens)
                    print(f"{count} fronts, {name}, {tokens:3} tokens: {line}", flush=True)


if __name__ == "__main__":
    main()
