"""Three processes in front of one upstream, on PostgreSQL and Redis, behave as one."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from afterword.core.account import KeyTerms
from afterword.engine.toy import toy_engine
from afterword.ledger.database import connect, parse_url, prepare
from afterword.ledger.keys import KeyStore
from conftest import make_client
from e2e.process import Server, serving
from standins.services import Postgres
from standins.upstreams import listening

BODY: dict[str, Any] = {
    "model": "toy", "prompt": "a", "max_tokens": 12, "logit_bias": {"98": 100},
}  # fmt: skip
EACH_TOKENS = 13
"""One token of the prompt and twelve generated. A request uses all that it reserves."""
CLIENTS = 100
ALLOWED = 40
LIMITED = (
    KeyTerms(name="rpm", rpm=ALLOWED),
    KeyTerms(name="tpm", tpm=ALLOWED * EACH_TOKENS),
    KeyTerms(name="budget", budget_tokens=ALLOWED * EACH_TOKENS),
)
LOG = logging.getLogger(__name__)


@dataclass
class Fronts:
    """The servers, which clients use in turn, and keys that were made before their start."""

    servers: list[Server]
    keys: dict[str, str]
    client: httpx2.Client

    def complete(self, at: int, key: str) -> httpx2.Response:
        url = self.servers[at % len(self.servers)].url
        return self.client.post(f"{url}/v1/completions", json=BODY, headers=bearer(key))

    def race(self, key: str) -> Counter[int]:
        """A hundred clients ask at once. Returns how often each status came."""
        together = threading.Barrier(CLIENTS)

        def ask(at: int) -> int:
            together.wait()
            return self.complete(at, key).status_code

        with ThreadPoolExecutor(CLIENTS) as clients:
            return Counter(clients.map(ask, range(CLIENTS)))

    def until_refused(self, at: int) -> tuple[float, int]:
        """Returns when the first refused request of a revoked key began, and how many passed."""
        asked_s = time.monotonic()
        taken = 0
        while self.complete(at, self.keys["revoked"]).status_code != 401:
            taken += 1
            asked_s = time.monotonic()
        return asked_s, taken

    def usage(self, at: int) -> dict[str, int]:
        """Returns tokens by key name, as one of the servers reports them."""
        answer = self.client.get(
            f"{self.servers[at].url}/admin/v1/usage?by=key", headers=bearer(self.keys["admin"])
        )
        return {row["group"]: row["total_tokens"] for row in answer.json()["data"]}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def fronts(tmp_path: Path, postgres: Postgres, redis_url: str) -> Iterator[Fronts]:
    postgres.sql("CREATE DATABASE fronts")
    database = connect(parse_url(postgres.url("fronts")))
    prepare(database)
    key_store = KeyStore(database, clock=time.time, entropy=os.urandom)
    terms = (*LIMITED, KeyTerms(name="admin", admin=True), KeyTerms(name="revoked"))
    keys = {one.name: key_store.create(one).secret for one in terms}
    database.dispose()
    engine = toy_engine(slots=16, max_waiting=CLIENTS)
    with ExitStack() as opened:
        opened.callback(lambda: asyncio.run(engine.aclose()))
        base = opened.enter_context(listening(make_client({"toy": engine}).app))
        flags = ("--model", f"toy=afterword+{base}", "--database", postgres.url("fronts"),
                 "--redis", redis_url)  # fmt: skip
        servers = [
            opened.enter_context(
                serving(tmp_path / f"stderr{i}", *flags, "--data-dir", str(tmp_path / str(i)))
            )
            for i in range(3)
        ]
        limits = httpx2.Limits(max_connections=CLIENTS)
        client = opened.enter_context(httpx2.Client(limits=limits, timeout=60))
        yield Fronts(servers, keys, client)
        client.close()
        assert [server.stop() for server in servers] == [0, 0, 0]


def test_three_servers_behave_as_one(fronts: Fronts) -> None:
    """They share exact limits, revocations and usage."""
    for name in (terms.name for terms in LIMITED):
        began_s = time.monotonic()
        came = fronts.race(fronts.keys[name])
        LOG.info("%s: %s in %.1f s", name, dict(came), time.monotonic() - began_s)
        assert came == {200: ALLOWED, 429: CLIENTS - ALLOWED}, name

    for at in range(3):
        assert fronts.complete(at, fronts.keys["revoked"]).status_code == 200
    done = fronts.client.delete(
        f"{fronts.servers[0].url}/admin/v1/keys/revoked", headers=bearer(fronts.keys["admin"])
    )
    assert done.status_code == 200
    revoked_s = time.monotonic()
    with ThreadPoolExecutor(3) as clients:
        refused = list(clients.map(fronts.until_refused, range(3)))
    LOG.info(
        "refused %s s after it was revoked", [f"{at_s - revoked_s:.2f}" for at_s, _ in refused]
    )

    expected = {terms.name: ALLOWED * EACH_TOKENS for terms in LIMITED}
    expected["revoked"] = (3 + sum(taken for _, taken in refused)) * EACH_TOKENS
    for at in range(3):
        # A record is in the database soon after its answer, not before it.
        while (told := fronts.usage(at)) != expected:
            assert all(told.get(name, 0) <= tokens for name, tokens in expected.items())
