"""``LLM``: a model for programs that wait for its answers."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

from afterword.library.answers import ContinuationScore, TextCompletion, TextScore
from afterword.library.backend import ModelFacts, Opener
from afterword.library.fields import CompletionFields, InfillFields, PromptInput
from afterword.library.opened import OpenedModel
from afterword.library.scoring import Advance
from afterword.library.streams import TextStream


class LLM(OpenedModel):
    """A model in this process, as the server runs it, and safe to use from any thread.

    ``model`` is what ``--model`` takes: the embedded model's name, a path, ``hf:…`` or ``pypi:…``,
    with ``NAME=`` in front if it is to have another name. ``settings`` are those of the server
    (``slots``, ``ctx``, ``threads``, ``max_logprobs``, …); variables of the environment count, too.

    Close it, or use it as a context manager. All methods raise ``ApiError``, with the messages of
    the server. Raises ``ConfigError`` if the model cannot be loaded.
    """

    def _start(self, opener: Opener) -> None:
        super()._start(opener)
        try:
            self.facts: ModelFacts = self._session.ready.result().facts
        except BaseException:
            self._session.close()
            raise

    def complete(
        self, prompt: PromptInput = None, **fields: Unpack[CompletionFields]
    ) -> TextCompletion:
        """Returns the completion of one prompt or several. ``fields`` are the contract's."""
        return self._session.wait(self._calls.complete(prompt, fields))

    def stream(self, prompt: PromptInput = None, **fields: Unpack[CompletionFields]) -> TextStream:
        """Returns the chunks of a completion as they come. Refusals are raised at once."""
        opening = TextStream.begun(self._session, self._calls, prompt, fields)
        return self._session.wait(opening)

    def infill(self, prompt: str, suffix: str, **fields: Unpack[InfillFields]) -> TextCompletion:
        """Returns what stands between ``prompt`` and ``suffix`` (F1)."""
        return self.complete(prompt, suffix=suffix, **fields)

    def score(
        self,
        texts: str | Sequence[str],
        *,
        top: int = 0,
        window: int | None = None,
        stride: int | None = None,
        advance: Advance | None = None,
    ) -> list[TextScore]:
        """Returns the score of each text, behind the start of a document.

        ``top`` is how many alternatives each token gets. A text longer than ``window`` tokens, by
        default the context, is scored in windows that are ``stride`` tokens apart, by default half
        a window. ``advance`` is called with the number of tokens that were scored since its last
        call, and with that of all; it may not call the library.
        """
        return self._session.wait(self._calls.score(texts, top, window, stride, advance))

    def score_continuations(
        self, context: str, continuations: Sequence[str]
    ) -> list[ContinuationScore]:
        """Returns how likely each continuation is after a context, as lm-evaluation-harness does.

        The context is computed once.
        """
        return self._session.wait(self._calls.continuations(context, continuations))

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of a text, with a BOS if the model adds one."""
        return self._session.wait(self._calls.tokenize(text, add_special_tokens=add_special_tokens))

    def detokenize(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids."""
        return self._session.wait(self._calls.detokenize(ids))

    def close(self) -> None:
        """End what runs and free the model. Idempotent."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LLM({self.facts.name!r}, context_tokens={self.facts.context_tokens})"
