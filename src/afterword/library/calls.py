"""What a model can be asked, as coroutines of the session's loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from afterword.core.errors import InvalidRequest
from afterword.library.answers import ContinuationScore, TextChunk, TextCompletion, TextScore
from afterword.library.backend import Backend, ChunkSource, ModelFacts
from afterword.library.fields import CompletionFields, PromptInput
from afterword.library.scoring import Advance, Scorer, texts_of


class Calls:
    """One coroutine for each method of the library, which waits until the model is open."""

    def __init__(self, ready: Future[Backend]) -> None:
        self._ready = ready
        self._scorer: Scorer | None = None

    async def facts(self) -> ModelFacts:
        """Returns the facts of the model."""
        return (await self._backend()).facts

    async def complete(self, prompt: PromptInput, fields: CompletionFields) -> TextCompletion:
        """Returns a whole answer."""
        return await (await self._backend()).complete(body_of(prompt, fields))

    async def open(self, prompt: PromptInput, fields: CompletionFields) -> ChunkSource:
        """Returns an admitted stream."""
        return await (await self._backend()).open(body_of(prompt, fields, stream=True))

    async def pull(self, source: ChunkSource) -> list[TextChunk]:
        """Returns the next chunks of a stream; an empty list at its end."""
        return await source.pull()

    async def close(self, source: ChunkSource) -> None:
        """End a stream."""
        await source.close()

    async def score(
        self,
        texts: str | Sequence[str],
        top: int,
        window: int | None,
        stride: int | None,
        advance: Advance | None,
    ) -> list[TextScore]:
        """Returns the score of each text."""
        scorer = await self._scoring()
        return await scorer.score(
            texts_of(texts), top=top, window=window, stride=stride, advance=advance
        )

    async def continuations(
        self, context: str, continuations: Sequence[str]
    ) -> list[ContinuationScore]:
        """Returns how likely each continuation is."""
        texts_of([context])
        return await (await self._scoring()).continuations(context, texts_of(continuations))

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Returns the ids of a text."""
        texts_of([text])
        backend = await self._backend()
        return await backend.tokenize(text, add_special_tokens=add_special_tokens)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Returns the text of ids."""
        return await (await self._backend()).detokenize(list(ids))

    async def _backend(self) -> Backend:
        if not self._ready.done():
            await asyncio.wait([asyncio.wrap_future(self._ready)])
        return self._ready.result()

    async def _scoring(self) -> Scorer:
        if self._scorer is None:
            self._scorer = Scorer(await self._backend())
        return self._scorer


def body_of(prompt: PromptInput, fields: CompletionFields, *, stream: bool = False) -> bytes:
    """Returns the body of a request. Raises ``InvalidRequest`` for what JSON cannot say."""
    named: dict[str, Any] = dict(fields)
    if "stream" in named:
        raise InvalidRequest("The method stream() gives a stream, not 'stream'.", param="stream")
    for name, value in named.items():
        _refuse_infinite(name, value)
    # A request without a model means the one that is open.
    if stream:
        named["stream"] = True
    try:
        return msgspec.json.encode({"prompt": prompt, **named})
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"The request cannot be written as JSON: {error}") from error


def _refuse_infinite(name: str, value: object) -> None:
    """Raises ``InvalidRequest`` for NaN and infinities, which the encoder would write as null."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest(
            f"The request cannot be written as JSON: '{name}' is {value}.", param=name
        )
    if isinstance(value, (Mapping, list, tuple)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            _refuse_infinite(name, inner)
