"""``AsyncLLM``: a model for programs with an event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from afterword.config import Settings
from afterword.library.answers import ContinuationScore, TextCompletion, TextScore
from afterword.library.backend import ModelFacts, Opener
from afterword.library.calls import Calls
from afterword.library.fields import CompletionFields, InfillFields, PromptInput
from afterword.library.llm import TIMEOUT_S
from afterword.library.opening import DEFAULT_MODEL, opener_for, settings_for
from afterword.library.scoring import Advance
from afterword.library.session import Session
from afterword.library.streams import AsyncTextStream


class AsyncLLM:
    """The model of ``LLM`` for event loops, of any number of threads.

    It starts to load at once, in the background; the first call waits for that, and raises
    ``ConfigError`` if the model cannot be loaded. A task that is cancelled ends its request.
    """

    def __init__(self, model: str = DEFAULT_MODEL, /, **settings: Any) -> None:  # noqa: ANN401 - of many types
        self._start(opener_for(settings_for(model, settings)))

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        key: str | None = None,
        model: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Self:
        """Returns a model of the Afterword server at ``url``; see ``LLM.connect``.

        The first call raises what connecting raises.
        """
        from afterword.library.remote import connecting  # noqa: PLC0415 - a client of HTTP

        return cls.opened_by(connecting(url, key=key, model=model, timeout_s=timeout_s))

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Returns the first model of some settings."""
        return cls.opened_by(opener_for(settings))

    @classmethod
    def opened_by(cls, opener: Opener) -> Self:
        """Returns the model of a backend that ``opener`` opens."""
        made = cls.__new__(cls)
        made._start(opener)  # noqa: SLF001 - its own
        return made

    def _start(self, opener: Opener) -> None:
        self._session = Session(opener)
        # A model that is dropped is freed, too. The collector must not wait for it.
        weakref.finalize(self, self._session.leave).atexit = False
        self._calls = Calls(self._session.ready)

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
        source = await self._session.awaited(self._calls.open(prompt, fields))
        return AsyncTextStream(self._session, self._calls, source)

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
