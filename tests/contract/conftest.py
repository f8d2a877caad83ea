"""The contract holds for an engine in this process and for Afterword in front of Afterword."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack

import pytest

from afterword.core.limits import Limits
from afterword.core.protocols import Engine
from afterword.engine.remote.dialect import Facts
from afterword.engine.remote.engine import RemoteEngine
from afterword.engine.toy import toy_engine
from afterword.http.lifecycle import Lifecycle
from asgi import Client
from conftest import make_client
from upstreams import engine_of, facts_of, listening

WAYS = ("in this process", "behind another")


@pytest.fixture(scope="session")
def upstream() -> Iterator[tuple[str, dict[str, list[Facts]]]]:
    """A server of the toy models, and what it says of each of them."""
    engines: dict[str, Engine] = {
        "toy": toy_engine(),
        "toy-bos": toy_engine(adds_bos=True),
        "plain": toy_engine(infill=False),
    }
    with listening(make_client(engines).app) as base:
        yield base, {name: facts_of(f"afterword+{base}#{name}") for name in engines}
    for engine in engines.values():
        asyncio.run(engine.aclose())


@pytest.fixture(params=WAYS)
async def client(
    request: pytest.FixtureRequest,
    client: Client,
    upstream: tuple[str, dict[str, list[Facts]]],
) -> AsyncIterator[Client]:
    """The toy models, at hand or behind another Afterword."""
    if request.param == WAYS[0]:
        yield client
        return
    base, facts = upstream
    engines = {name: engine_of(f"afterword+{base}#{name}", facts[name]) for name in facts}
    yield make_client(dict(engines))
    for engine in engines.values():
        await engine.aclose()


@pytest.fixture(params=WAYS)
async def serve(
    request: pytest.FixtureRequest, serve: Callable[..., Client]
) -> AsyncIterator[Callable[..., Client]]:
    """Makes servers of a test's own engine, at hand or behind another Afterword."""
    if request.param == WAYS[0]:
        yield serve
        return
    fronts: list[RemoteEngine] = []
    with ExitStack() as opened:

        def make(
            engine: Engine,
            *,
            limits: Limits | None = None,
            lifecycle: Lifecycle | None = None,
            keep_alive_s: float = 15.0,
        ) -> Client:
            behind = serve(engine, limits=limits)
            base = opened.enter_context(listening(behind.app))
            source = f"afterword+{base}"
            front = engine_of(source, facts_of(source))
            fronts.append(front)
            return make_client(
                {"toy": front}, limits=limits, lifecycle=lifecycle, keep_alive_s=keep_alive_s
            )

        yield make
        for front in fronts:
            await front.aclose()
