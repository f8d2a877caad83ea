"""Measures the worst gap of a stream while another request of a heavy kind is served.

``python benchmarks/gaps.py [--rounds N] [--only KIND ...]``. The stream comes from a stub upstream,
200 tokens a second, through the server that also computes the embedded model, so that only what the
server's own event loop does can hold it up. A round takes the stream's worst gap in a quiet second
and then its worst gap while the heavy request runs. Other programs on the machine only make gaps
longer, so the figures are those of the round with the smallest worst gap.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

import tests_path  # noqa: F401 - where support is
from afterword.core.account import KeyTerms
from afterword.core.machine import usable_cores
from afterword.ledger.database import connect, prepare, sqlite_url
from afterword.ledger.keys import KeyStore
from afterword.ledger.tables import keys, secrets
from gateway import AFTERWORD, STUB
from gateway_stub import TOKEN
from support.embedded import embedded_file
from support.processes import free_port, running

PACE = 200
MOST_GAP_MS = 20.0
QUIET_S = 1.0
KEYS = 5000
_READ_BYTES = 1 << 20
_CTX = 2048


class Heavy(msgspec.Struct, frozen=True):
    """A request that takes the server long. A body that is text is sent as it is.

    Each round of a ``cold`` one finds nothing in the cache.
    """

    path: str = "/v1/completions"
    body: Any = None
    cold: bool = False

    def in_round(self, number: int) -> Heavy:
        """Returns the request of a round."""
        if not self.cold:
            return self
        return msgspec.structs.replace(self, body={**self.body, "cache_salt": str(number)})


def schema(properties: int) -> dict[str, Any]:
    """Returns a JSON schema of so many required properties, each with values of its own."""
    names = [f"property_{i}" for i in range(properties)]
    values = {name: {"enum": [f"{name}_{i}" for i in range(20)]} for name in names}
    return {"type": "object", "properties": values, "required": names}


def grammar(rules: int) -> str:
    """Returns a grammar of so many rules, each of which needs the next one."""
    lines = [f'rule_{i}: "{i}" rule_{i + 1} | "x{i}"' for i in range(rules)]
    return "\n".join(["start: rule_0", *lines, f'rule_{rules}: "end"'])


def kinds() -> dict[str, Heavy]:
    """Returns the heavy requests, by name."""
    words = "The harbour was quiet that morning and nobody had seen the ship. "
    long = (words * 200)[: 4 * (_CTX - 200)]
    scored = {"model": "local", "prompt": [f"{i} {long}" for i in range(8)], "max_tokens": 0,
              "echo": True, "logprobs": 20, "n": 8}  # fmt: skip
    passed = {"model": "scored", "prompt": [TOKEN] * 100_000, "max_tokens": 1, "echo": True,
              "logprobs": 5}  # fmt: skip
    structured = {"prompt": "a", "max_tokens": 1, "model": "local"}
    bodies = {
        "2,048 prompts": {"prompt": ["a"] * 2048, "max_tokens": 0},
        "16 prompts, n=128": {"prompt": ["a"] * 16, "n": 128, "max_tokens": 0},
        "n=128, 32 tokens": {"prompt": "a", "n": 128, "max_tokens": 32, "logprobs": 5},
        "the same, streamed": {"prompt": "a", "n": 128, "max_tokens": 32, "logprobs": 5,
                               "stream": True},
        "echo, from a cache": scored,
        "16 MB of text": {"prompt": " " * (16_000_000 - 100), "max_tokens": 1},
        "16 MB of ids": {"prompt": [1] * 7_990_000, "max_tokens": 1},
        "16 MB of prompts": {"prompt": ["é" * 3800] * 2048, "max_tokens": 1},
        "a bias for each token": {"prompt": "a", "max_tokens": 1,
                                  "logit_bias": {str(i): 1 for i in range(49_152)}},
    }  # fmt: skip
    return {
        "echo and logprobs": Heavy(body=scored, cold=True),
        **{name: Heavy(body={"model": "local", **body}) for name, body in bodies.items()},
        "an upstream's logprobs": Heavy(body=passed),
        "the same in a stream": Heavy(body={**passed, "stream": True}),
        "a schema of 1 MB": Heavy(
            body={**structured, "structured_outputs": {"json": schema(1500)}}
        ),
        "a grammar of 1 MB": Heavy(
            body={**structured, "structured_outputs": {"grammar": grammar(30_000)}}
        ),
        "16 MB of names": Heavy(body="{" + ",".join(f'"x{i}":1' for i in range(1_300_000)) + "}"),
        "16 MB of brackets": Heavy(body='{"prompt":' + "[" * 16_000_000),
        "tokenize, a context": Heavy("/tokenize", {"model": "local", "prompt": " a" * (_CTX - 9)}),
        "tokenize, 16 MB": Heavy("/tokenize", {"model": "local", "prompt": " " * 15_999_000}),
        "detokenize, 16 MB": Heavy("/detokenize", {"model": "local", "tokens": [1] * 7_900_000}),
        "all tokens": Heavy("/tokenizer_info?vocabulary=true"),
        f"{KEYS:,} keys": Heavy("/admin/v1/keys"),
        "1,000 records": Heavy("/admin/v1/usage/requests"),
        "the API's document": Heavy("/openapi.json"),
        "the API's page": Heavy("/docs"),
        "metrics": Heavy("/metrics"),
    }


def request_bytes(secret: str, heavy: Heavy) -> bytes:
    """Returns a whole request that ends its connection."""
    raw = heavy.body if isinstance(heavy.body, str) else json.dumps(heavy.body)
    body = b"" if heavy.body is None else raw.encode()
    method = "GET" if heavy.body is None else "POST"
    head = (
        f"{method} {heavy.path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Authorization: Bearer {secret}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def asked(port: int, request: bytes) -> tuple[int, int]:
    """Send a request. Returns the status and the bytes of its answer."""
    buffer = bytearray(_READ_BYTES)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        size = connection.recv_into(buffer)
        status, total = int(buffer[9:12]), size
        while size:
            size = connection.recv_into(buffer)
            total += size
    return status, total


class Stream:
    """A stream that is read in a thread. ``gaps_ms`` are the times between its reads."""

    def __init__(self, port: int, secret: str) -> None:
        body = {"model": "paced", "prompt": "a" * (PACE + 1), "max_tokens": 1_000_000,
                "stream": True}  # fmt: skip
        self._connection = socket.create_connection(("127.0.0.1", port))
        self._connection.sendall(request_bytes(secret, Heavy(body=body)))
        self._moments: list[float] = []
        threading.Thread(target=self._read, daemon=True).start()
        while len(self._moments) < PACE // 4:
            time.sleep(0.01)

    def _read(self) -> None:
        while self._connection.recv(_READ_BYTES):
            self._moments.append(time.perf_counter())

    def worst_ms(self, since: float, until: float) -> float:
        """Returns the longest time between two reads, of which one is in a period."""
        while self._moments[-1] < until:
            time.sleep(0.001)
        first = bisect_left(self._moments, since)
        moments = self._moments[first - 1 : bisect_left(self._moments, until, first) + 1]
        return max(b - a for a, b in pairwise(moments)) * 1e3


def fill(database: sa.Engine) -> None:
    """Give a ledger many keys."""
    key: dict[str, Any] = {"budget_per": "day", "admin": False, "created_at": 1.0}
    secret: dict[str, Any] = {"prefix": "sk-af-abcd", "created_at": 1.0}
    numbers = range(KEYS)
    with database.begin() as connection:
        rows = [{**key, "id": f"key-{i}", "name": f"key {i}"} for i in numbers]
        connection.execute(sa.insert(keys), rows)
        rows = [{**secret, "key_id": f"key-{i}", "digest": f"{i:064x}"} for i in numbers]
        connection.execute(sa.insert(secrets), rows)


@contextmanager
def served() -> Iterator[tuple[int, str]]:
    """Run the server in front of a stub; yields its port and an admin's key."""
    upstream, port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        database = connect(sqlite_url(Path(folder, "ledger.db")))
        prepare(database)
        store = KeyStore(database, clock=time.time, entropy=os.urandom)
        secret = store.create(KeyTerms(name="admin", admin=True)).secret
        fill(database)
        database.dispose()
        command = [
            str(AFTERWORD), "serve", "--port", str(port), "--model", f"local={embedded_file()}",
            "--model", f"paced=openai+http://127.0.0.1:{upstream}/v1",
            "--model", f"scored=vllm+http://127.0.0.1:{upstream}/v1", "--ctx", str(_CTX),
            "--threads", str(max(usable_cores() - 1, 1)), "--data-dir", folder,
        ]  # fmt: skip
        stub = [sys.executable, str(STUB), str(upstream)]
        with running(stub, upstream, ready="/v1/models"), running(command, port):
            yield port, secret


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="parts of the names of kinds")
    given = parser.parse_args()
    wanted = {name: heavy for name, heavy in kinds().items()
              if not given.only or any(part in name for part in given.only)}  # fmt: skip
    print(
        f"{'':<26}{'status':>7}{'MB':>8}{'took s':>8}{'quiet ms':>10}{'worst ms':>10}{'ratio':>8}"
    )
    with served() as (port, secret):
        stream = Stream(port, secret)
        asked(port, request_bytes(secret, Heavy("/tokenizer_info")))
        for name, heavy in wanted.items():
            rounds = []
            for number in range(given.rounds):
                request = request_bytes(secret, heavy.in_round(number))
                begun = time.perf_counter()
                time.sleep(QUIET_S)
                sent = time.perf_counter()
                status, size = asked(port, request)
                over = time.perf_counter()
                quiet, worst = stream.worst_ms(begun, sent), stream.worst_ms(sent, over)
                rounds.append((worst, quiet, over - sent, status, size))
            worst, quiet, took_s, status, size = min(rounds)
            mark = "  <- more than 20 ms" if worst > MOST_GAP_MS else ""
            print(f"{name:<26}{status:>7}{size / 1e6:>8.2f}{took_s:>8.2f}{quiet:>10.1f}"
                  f"{worst:>10.1f}{worst / quiet:>8.1f}{mark}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
