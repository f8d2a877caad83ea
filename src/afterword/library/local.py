"""A model in this process: the server's own completion service, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import msgspec

from afterword.completion.service import CompletionService
from afterword.completion.stream import CompletionStream
from afterword.compose.progress import Progress
from afterword.compose.services import load_service
from afterword.config import Settings
from afterword.core.wire import Chunk
from afterword.library.answers import TextChunk, TextCompletion, chunk_of, completion_of
from afterword.library.backend import ChunkSource, ModelFacts, Opener, SpecialNames


class LocalBackend:
    """Answers by a service, with the plans and the errors of the server."""

    def __init__(self, service: CompletionService) -> None:
        self._service = service
        served = service.catalog.default
        card = served.engine.card
        self.facts = ModelFacts(served.name, card.context_tokens, served.fingerprint)
        self.scored_name = served.name

    async def complete(self, body: bytes) -> TextCompletion:
        """See ``Backend``."""
        plan = await self._service.plan(body)
        async with self._service.open(plan) as answer:
            return completion_of(await answer.completion())

    async def open(self, body: bytes) -> ChunkSource:
        """See ``Backend``."""
        plan = await self._service.plan(body)
        stack = AsyncExitStack()
        answer = await stack.enter_async_context(self._service.open(plan))
        return LocalChunks(stack, answer)

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """See ``Backend``."""
        body = {"prompt": text, "add_special_tokens": add_special_tokens}
        call = await self._service.tokenization(msgspec.json.encode(body))
        return (await call.run()).tokens

    async def detokenize(self, ids: msgspec.Raw) -> str:
        """See ``Backend``."""
        call = await self._service.detokenization(msgspec.json.encode({"tokens": ids}))
        return (await call.run()).prompt

    async def special_names(self) -> SpecialNames:
        """See ``Backend``."""
        info = self._service.tokenizer_info()
        return SpecialNames(info.bos_token, info.eos_token)


class LocalChunks:
    """The chunks of one running plan."""

    def __init__(self, stack: AsyncExitStack, answer: CompletionStream) -> None:
        self._stack = stack
        self._chunks: AsyncIterator[list[Chunk]] = answer.chunks()
        self._pulling: asyncio.Task[object] | None = None
        self._closed = False

    async def pull(self) -> list[TextChunk]:
        """See ``ChunkSource``."""
        if self._closed:
            return []
        self._pulling = asyncio.current_task()
        try:
            async for chunks in self._chunks:
                return [chunk_of(chunk) for chunk in chunks]
        except asyncio.CancelledError:
            if not self._closed:
                raise
        finally:
            self._pulling = None
        return []

    async def close(self) -> None:
        """See ``ChunkSource``."""
        self._closed = True
        if self._pulling is not None:
            # What it waits for does not come any more.
            self._pulling.cancel()
        await self._stack.aclose()


def loading(settings: Settings, progress: Progress, *, probe: bool = True) -> Opener:
    """Returns what loads the models of some settings. It raises ``ConfigError``.

    ``probe`` tests each model's batch invariance, once on a machine, as the server does.
    """
    return partial(_load, settings, progress, probe=probe)


@asynccontextmanager
async def _load(
    settings: Settings, progress: Progress, *, probe: bool
) -> AsyncIterator[LocalBackend]:
    async with load_service(settings, progress, probe=probe) as service:
        yield LocalBackend(service)
