"""``AsyncLLM``: a model for programs with an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

from afterword.library.answers import ContinuationScore, TextCompletion, TextScore
from afterword.library.backend import ModelFacts
from afterword.library.fields import CompletionFields, InfillFields, PromptInput
from afterword.library.opened import OpenedModel
from afterword.library.scoring import Advance
from afterword.library.streams import AsyncTextStream


class AsyncLLM(OpenedModel):
    """The model of ``LLM`` for event loops, of any number of threads.

    It starts to load at once, in the background; the first call waits for that, and raises
    ``ConfigError`` if the model cannot be loaded. A task that is cancelled ends its request.
    """

    async def facts(self) -> ModelFacts:
        """Returns name, context and fingerprint of the model, once it is loaded."""
        return await self._session.awaited(self._calls.facts())

    async def complete(
        self, prompt: PromptInput = None, **fields: Unpack[CompletionFields]
    ) -> TextCompletion:
        """See ``LLM.complete``."""
        return await self._session.awaited(self._calls.complete(prompt, fields))

    async def stream(
        self, prompt: PromptInput = None, **fields: Unpack[CompletionFields]
    ) -> AsyncTextStream:
        """Returns the chunks of a completion as they come: ``async for chunk in await …``."""
        opening = AsyncTextStream.begun(self._session, self._calls, prompt, fields)
        return await self._session.awaited(opening)

    async def infill(
        self, prompt: str, suffix: str, **fields: Unpack[InfillFields]
    ) -> TextCompletion:
        """See ``LLM.infill``."""
        return await self.complete(prompt, suffix=suffix, **fields)

    async def score(
        self,
        texts: str | Sequence[str],
        *,
        top: int = 0,
        window: int | None = None,
        stride: int | None = None,
        advance: Advance | None = None,
    ) -> list[TextScore]:
        """See ``LLM.score``. ``advance`` is called in another thread."""
        return await self._session.awaited(self._calls.score(texts, top, window, stride, advance))

    async def score_continuations(
        self, context: str, continuations: Sequence[str]
    ) -> list[ContinuationScore]:
        """See ``LLM.score_continuations``."""
        return await self._session.awaited(self._calls.continuations(context, continuations))

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See ``LLM.tokenize``."""
        return await self._session.awaited(
            self._calls.tokenize(text, add_special_tokens=add_special_tokens)
        )

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See ``LLM.detokenize``."""
        return await self._session.awaited(self._calls.detokenize(ids))

    async def aclose(self) -> None:
        """End what runs and free the model. Idempotent."""
        await asyncio.to_thread(self._session.close)

    async def __aenter__(self) -> Self:
        """Wait until the model is loaded. Raises ``ConfigError`` if it cannot be."""
        try:
            await self.facts()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
