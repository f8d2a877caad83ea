"""Models of the library over the toy engine, in this process and behind HTTP."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import msgspec

from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.old_tokens import OldTokens
from afterword.completion.service import CompletionService
from afterword.core.alias import Alias
from afterword.core.limits import Limits
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.toy import toy_engine
from afterword.http.app import create_app
from afterword.http.lifecycle import Lifecycle
from afterword.library.answers import TextCompletion
from afterword.library.backend import Opener
from afterword.library.local import LocalBackend
from standins.upstreams import listening

CREATED = 1_700_000_000


LIMITS = Limits(require_model=False)
"""Those of the library."""


def service_of(
    engine: BatchingEngine,
    name: str = "toy",
    aliases: Mapping[str, Alias] | None = None,
    limits: Limits = LIMITS,
    vocabularies: Mapping[str, OldTokens] | None = None,
) -> CompletionService:
    """A service of one model."""
    return CompletionService(
        Catalog([ServedModel(name, engine, CREATED)], aliases, vocabularies),
        limits,
        clock=lambda: CREATED + 0.5,
        entropy=os.urandom,
    )


@asynccontextmanager
async def _open(engine: BatchingEngine, name: str) -> AsyncIterator[LocalBackend]:
    try:
        yield LocalBackend(service_of(engine, name))
    finally:
        await engine.aclose()


def toy(engine: BatchingEngine | None = None, name: str = "toy") -> Opener:
    """Opens a toy model in this process; closes its engine."""
    return partial(_open, engine or toy_engine(), name)


@contextmanager
def served(
    engine: BatchingEngine | None = None,
    aliases: Mapping[str, Alias] | None = None,
    limits: Limits = LIMITS,
    vocabularies: Mapping[str, OldTokens] | None = None,
) -> Iterator[str]:
    """A server of a toy model; yields its address."""
    opened = engine or toy_engine()
    app = create_app(
        service_of(opened, aliases=aliases, limits=limits, vocabularies=vocabularies),
        lifecycle=Lifecycle(),
        clock=lambda: 0.0,
        entropy=os.urandom,
    )
    with listening(app) as base:
        yield base.removesuffix("/v1")
    asyncio.run(opened.aclose())


def comparable(answer: TextCompletion) -> TextCompletion:
    """Returns an answer without what differs from one request to the next."""
    usage = msgspec.structs.replace(
        answer.usage,
        prompt_tokens_details=msgspec.structs.replace(
            answer.usage.prompt_tokens_details, cached_tokens=0
        ),
    )
    return msgspec.structs.replace(answer, id="", created=0, usage=usage)
