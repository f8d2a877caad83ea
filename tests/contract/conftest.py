"""The contract holds for toy models in this process, and for the same models on other servers.

The other servers are Afterword, a stand-in for vLLM (``standins/vllm_server.py``) and one for
SGLang (``standins/sglang_server.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack

import pytest
from _pytest.mark import ParameterSet

from afterword.core.limits import Limits
from afterword.core.protocols import Engine
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.toy import toy_engine
from afterword.gateway.dialects.dialect import Facts
from afterword.gateway.dialects.registry import DIALECTS
from afterword.gateway.engine import RemoteEngine
from afterword.http.lifecycle import Lifecycle
from conftest import make_client
from standins.sglang_server import Sglang
from standins.upstreams import engine_of, facts_of, listening
from standins.vllm_server import Vllm
from support.asgi import Client

HERE, BEHIND_AFTERWORD, BEHIND_VLLM = "here", "behind afterword", "behind vllm"
BEHIND_SGLANG = "behind sglang"
Introspected = Mapping[str, tuple[str, list[Facts]]]
"""The source of each model, by name, and what its servers say about it."""


def _slow(way: str) -> ParameterSet:
    """A way that ``make test-fast`` leaves out."""
    return pytest.param(way, marks=pytest.mark.slow)


@pytest.fixture(scope="session")
def upstreams() -> Iterator[Mapping[str, Introspected]]:
    """The toy models on other servers, by the kind of server."""
    ways: dict[str, dict[str, str]] = {}
    with ExitStack() as opened:
        engines = _engines(opened)
        base = opened.enter_context(listening(make_client(dict(engines)).app))
        ways[BEHIND_AFTERWORD] = {name: f"afterword+{base}#{name}" for name in engines}
        base = opened.enter_context(listening(Vllm(_engines(opened)).app))
        ways[BEHIND_VLLM] = {name: f"vllm+{base}#{name}" for name in engines}
        ways[BEHIND_SGLANG] = {}
        for name, engine in _engines(opened).items():
            app = Sglang(engine, name=name, incremental=name != "toy").app
            ways[BEHIND_SGLANG][name] = f"sglang+{opened.enter_context(listening(app))}"
        yield {
            way: {name: (source, facts_of(source, name=name)) for name, source in named.items()}
            for way, named in ways.items()
        }


def _engines(opened: ExitStack) -> dict[str, BatchingEngine]:
    """Makes new toy models, which are closed at the end."""
    engines = {
        "toy": toy_engine(),
        "toy-bos": toy_engine(adds_bos=True),
        "plain": toy_engine(infill=False),
    }
    for engine in engines.values():
        opened.callback(_close, engine)
    return engines


def _close(engine: Engine) -> None:
    asyncio.run(engine.aclose())


@pytest.fixture(params=[HERE, *map(_slow, (BEHIND_AFTERWORD, BEHIND_VLLM, BEHIND_SGLANG))])
async def client(
    request: pytest.FixtureRequest, client: Client, upstreams: Mapping[str, Introspected]
) -> AsyncIterator[Client]:
    """The toy models, in this process or behind other servers."""
    if request.param == HERE:
        yield client
        return
    introspected = upstreams[request.param]
    engines = {name: engine_of(*found, name=name) for name, found in introspected.items()}
    yield make_client(dict(engines))
    for engine in engines.values():
        await engine.aclose()


class Lacks:
    """What the server behind a test's client refuses, by the features of its dialect."""

    def __init__(self, way: str) -> None:
        self.way = way
        dialect = None if way == HERE else DIALECTS[way.removeprefix("behind ")]
        self._features = frozenset(() if dialect is None else dialect.lacks)

    def __contains__(self, feature: object) -> bool:
        return feature in self._features


@pytest.fixture
def lacks(request: pytest.FixtureRequest) -> Lacks:
    """What the client of this test refuses by name."""
    return Lacks(request.node.callspec.params["client"])


@pytest.fixture(params=[HERE, _slow(BEHIND_AFTERWORD)])
async def serve(
    request: pytest.FixtureRequest, serve: Callable[..., Client]
) -> AsyncIterator[Callable[..., Client]]:
    """Makes servers of a test's own engine, in this process or behind another Afterword."""
    if request.param == HERE:
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
            source = f"afterword+{opened.enter_context(listening(behind.app))}"
            front = engine_of(source, facts_of(source))
            fronts.append(front)
            return make_client(
                {"toy": front}, limits=limits, lifecycle=lifecycle, keep_alive_s=keep_alive_s
            )

        yield make
        for front in fronts:
            await front.aclose()
