"""Upstreams of an engine under test, each on a socket and a thread of its own."""

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
"""No probe and no wait happens by itself during a test."""


def hasty(**limits_s: float) -> PoolOptions:
    """Returns ``PATIENT`` with other limits of time, in seconds."""
    return msgspec.structs.replace(PATIENT, **limits_s)


class Certificate(NamedTuple):
    """Files of a server that speaks TLS."""

    chain: Path
    key: Path


class _Server(uvicorn.Server):
    """Sets ``ready`` when it listens."""

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
    """Serve an app; yields the base URL that an SDK takes."""
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
    """Returns a pool of the upstreams in a source, before any introspection."""
    addresses = parse_addresses(source)
    return Pool(name, DIALECTS[addresses[0].dialect], addresses, options)


def facts_of(source: str, *, name: str = "toy") -> list[Facts]:
    """Introspect the upstreams on a thread with a loop of its own. Returns their facts."""

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
    """Returns an engine in front of upstreams with known facts, in the order of ``source``."""
    pool = pool_of(source, name=name, options=options)
    for upstream, said in zip(pool.upstreams, facts, strict=True):
        upstream.facts = said
        upstream.up = True
    return RemoteEngine(pool, facts, max_waiting=max_waiting)
