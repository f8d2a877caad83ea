"""Servers that stand behind an engine under test, each on a socket and a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import uvicorn
from starlette.types import ASGIApp

from afterword.gateway.address import parse_addresses
from afterword.gateway.dialects.dialect import Facts
from afterword.gateway.dialects.registry import DIALECTS
from afterword.gateway.engine import RemoteEngine
from afterword.gateway.pool.pool import Pool, PoolOptions

Front = Callable[..., RemoteEngine]
"""Makes an engine in front of stand-ins or addresses."""
PATIENT = PoolOptions(probe_s=3600, patience_s=0)
"""Nothing happens by itself while a test looks."""


def hasty(**limits_s: float) -> PoolOptions:
    """Options whose limits of time are over at once."""
    return msgspec.structs.replace(PATIENT, **limits_s)


class Certificate(NamedTuple):
    """Files of a server that speaks TLS."""

    chain: Path
    key: Path


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, app: ASGIApp, certificate: Certificate | None) -> None:
        super().__init__(
            uvicorn.Config(app, http="httptools", ws="none", lifespan="off", interface="asgi3",
                           access_log=False, log_config=None, timeout_graceful_shutdown=1,
                           ssl_certfile=certificate and certificate.chain,
                           ssl_keyfile=certificate and str(certificate.key))
        )  # fmt: skip
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@contextmanager
def listening(app: ASGIApp, *, certificate: Certificate | None = None) -> Iterator[str]:
    """Serve an app; gives the base URL that an SDK would be given."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = _Server(app, certificate)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        server.ready.wait()
        try:
            yield f"http{'s' if certificate else ''}://127.0.0.1:{bound.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


def pool_of(source: str, *, name: str = "toy", options: PoolOptions = PATIENT) -> Pool:
    """A pool of the upstreams that a source names; nobody was asked yet."""
    addresses = parse_addresses(source)
    return Pool(name, DIALECTS[addresses[0].dialect], addresses, options)


def facts_of(source: str, *, name: str = "toy") -> list[Facts]:
    """What the upstreams say of themselves; asked from a thread, whatever loop runs here."""

    async def ask() -> list[Facts]:
        pool = pool_of(source, name=name)
        try:
            return await pool.introspect()
        finally:
            await pool.aclose()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, ask()).result()


def engine_of(
    source: str, facts: Sequence[Facts], *, name: str = "toy", options: PoolOptions = PATIENT,
    max_waiting: int = 256,
) -> RemoteEngine:  # fmt: skip
    """An engine in front of upstreams that were asked before."""
    pool = pool_of(source, name=name, options=options)
    for upstream, said in zip(pool.upstreams, facts, strict=True):
        upstream.facts = said
        upstream.up = True
    return RemoteEngine(pool, facts, max_waiting=max_waiting)
