"""Fixtures that several folders share."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from afterword.cli.sources import Store, parse_source
from afterword.cli.terminal import Terminal
from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.service import CompletionService
from afterword.config import EMBEDDED_SOURCE
from afterword.core.limits import Limits
from afterword.core.protocols import Engine
from afterword.engine.toy import toy_engine
from afterword.http.app import create_app
from afterword.http.lifecycle import Lifecycle
from asgi import Client

CREATED = 1_700_000_000


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The file of the embedded model, fetched if it is not here."""
    return Store(None, Terminal()).fetch(parse_source(EMBEDDED_SOURCE)).path


def make_client(
    engines: dict[str, Engine],
    *,
    limits: Limits | None = None,
    lifecycle: Lifecycle | None = None,
    keep_alive_s: float = 15.0,
) -> Client:
    """An app over these engines, with a clock and an entropy that repeat."""
    ticks = itertools.count()
    catalog = Catalog(
        [ServedModel(name, engine, CREATED) for name, engine in engines.items()],
        {"gpt-3.5-turbo-instruct": next(iter(engines))},
    )
    entropy = random.Random(7).randbytes
    service = CompletionService(
        catalog, limits or Limits(), clock=lambda: CREATED + 0.5, entropy=entropy
    )
    app = create_app(
        service,
        lifecycle=lifecycle or Lifecycle(),
        clock=lambda: next(ticks) / 1000,
        entropy=entropy,
        keep_alive_s=keep_alive_s,
    )
    return Client(app)


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """A server of toy models: ``toy``, ``toy-bos`` (adds BOS), ``plain`` (no infill)."""
    engines: dict[str, Engine] = {
        "toy": toy_engine(),
        "toy-bos": toy_engine(adds_bos=True),
        "plain": toy_engine(infill=False),
    }
    yield make_client(engines)
    for engine in engines.values():
        asyncio.run(engine.aclose())


@pytest.fixture
def serve() -> Iterator[Callable[..., Client]]:
    """Makes servers of a test's own engine; closes it at the end."""
    opened: list[Engine] = []

    def make(
        engine: Engine,
        *,
        limits: Limits | None = None,
        lifecycle: Lifecycle | None = None,
        keep_alive_s: float = 15.0,
    ) -> Client:
        opened.append(engine)
        return make_client(
            {"toy": engine}, limits=limits, lifecycle=lifecycle, keep_alive_s=keep_alive_s
        )

    yield make
    for engine in opened:
        asyncio.run(engine.aclose())
