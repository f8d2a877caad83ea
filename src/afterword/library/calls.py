"""What a model can be asked, as coroutines of the session's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from afterword.core.errors import InvalidRequest
from afterword.library.answers import ContinuationScore, TextCompletion, TextScore
from afterword.library.backend import Backend, ChunkSource, ModelFacts
from afterword.library.fields import CompletionFields, PromptInput
from afterword.library.scoring import Advance, Scorer, texts_of
from afterword.library.written import written


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
            texts_of("texts", texts), top=top, window=window, stride=stride, advance=advance
        )

    async def continuations(
        self, context: str, continuations: Sequence[str]
    ) -> list[ContinuationScore]:
        """Returns how likely each continuation is."""
        texts_of("context", [context])
        texts = texts_of("continuations", continuations)
        return await (await self._scoring()).continuations(context, texts)

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Returns the ids of a text."""
        texts_of("text", [text])
        backend = await self._backend()
        return await backend.tokenize(text, add_special_tokens=add_special_tokens)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Returns the text of ids."""
        return await (await self._backend()).detokenize(written("tokens", ids))

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
    named["prompt"] = prompt
    if stream:
        named["stream"] = True
    return msgspec.json.encode({name: written(name, value) for name, value in named.items()})
