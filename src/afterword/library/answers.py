"""The answers of the library: those of the contract as frozen values that display themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import msgspec

from afterword.core import wire
from afterword.core.job import FinishReason
from afterword.core.wire import (
    InfillReport,
    Logprobs,
    PromptLogprobs,
    Usage,
    read_prompt_logprobs,
)
from afterword.library import html
from afterword.library.tables import Row, frame

_UNSET = msgspec.UNSET
_CHOICE_COLUMNS = ("choice", "text", "finish_reason")
_TOKEN_COLUMNS = (
    "choice", "position", "token", "logprob", "probability", "text_offset", "top_logprobs",
)  # fmt: skip
_SCORE_COLUMNS = ("position", "token", "token_id", "logprob", "probability", "text_offset")
"""Of tables, which have them without a row, too."""


class TextChoice(msgspec.Struct, frozen=True):
    """One choice (A2), or what a chunk adds to it. The last three are None unless asked for."""

    text: str
    index: int
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[PromptLogprobs | None] | None = None

    def rows(self) -> Iterator[Row]:
        """Yields one row for each token, or one for the choice if it has no log-probabilities."""
        logprobs = self.logprobs
        if logprobs is None:
            yield {"choice": self.index, "text": self.text, "finish_reason": self.finish_reason}
            return
        for position, (token, value, top, offset) in enumerate(
            zip(
                logprobs.tokens,
                logprobs.token_logprobs,
                logprobs.top_logprobs,
                logprobs.text_offset,
                strict=True,
            )
        ):
            yield {
                "choice": self.index,
                "position": position,
                "token": token,
                "logprob": value,
                "probability": None if value is None else math.exp(value),
                "text_offset": offset,
                "top_logprobs": top,
            }

    def _repr_html_(self) -> str:
        logprobs = self.logprobs
        if logprobs is None:
            return html.boxed(escape(self.text))
        return html.tinted(
            self.text,
            logprobs.tokens,
            logprobs.token_logprobs,
            logprobs.text_offset,
            logprobs.top_logprobs,
            # With echo the text begins with the prompt, without it behind the prompt (L5).
            base=min(logprobs.text_offset, default=0),
        )


class TextCompletion(msgspec.Struct, frozen=True, tag_field="object", tag="text_completion"):
    """A whole answer (A1, A2). ``text`` is the text of the first choice.

    ``infill`` says how middles were found if a search found them (F3).
    """

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    system_fingerprint: str
    infill: InfillReport | None = None

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text

    def to_pandas(self) -> Any:  # noqa: ANN401 - pandas is not a dependency
        """Returns a ``pandas.DataFrame``: a row for each token, or without logprobs each choice.

        Raises ``ImportError`` if pandas is not installed.
        """
        bare = all(choice.logprobs is None for choice in self.choices)
        rows = (row for choice in self.choices for row in choice.rows())
        return frame(rows, _CHOICE_COLUMNS if bare else _TOKEN_COLUMNS)

    def _repr_html_(self) -> str:
        usage = {
            "model": self.model,
            "prompt": f"{self.usage.prompt_tokens} tokens",
            "completion": f"{self.usage.completion_tokens} tokens",
        }
        parts = [choice._repr_html_() for choice in self.choices]
        return "".join([*parts, html.figures(usage)])


class TextChunk(msgspec.Struct, frozen=True, tag_field="object", tag="text_completion"):
    """One chunk of a stream (S2). ``text`` is what it adds; ``usage`` is None unless asked for."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    system_fingerprint: str
    usage: Usage | None = None
    obfuscation: str | None = None
    infill: InfillReport | None = None

    @property
    def text(self) -> str:
        """The text that it adds; empty for the chunk of the usage."""
        return self.choices[0].text if self.choices else ""


class TextScore(msgspec.Struct, frozen=True):
    """A text and the log-probability of each of its tokens, behind the start of a document.

    ``text_offset`` counts characters. A text longer than ``window_tokens`` was computed in
    ``windows`` windows, each ``stride_tokens`` after the one before; each token is scored once, in
    the first window that has it.
    """

    text: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[Mapping[str, float], ...]
    text_offset: tuple[int, ...]
    windows: int
    window_tokens: int
    stride_tokens: int

    @property
    def total_logprob(self) -> float:
        """The log-probability of the text, in nats."""
        return sum(self.token_logprobs, 0.0)

    @property
    def mean_logprob(self) -> float:
        """The mean over tokens, in nats. 0 for an empty text."""
        return self.total_logprob / len(self.tokens) if self.tokens else 0.0

    @property
    def perplexity(self) -> float:
        """``exp`` of the negative mean; infinite if no float is so large."""
        try:
            return math.exp(-self.mean_logprob)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """The bits that the model needs for each byte of the text. 0 for an empty text."""
        size = len(self.text.encode())
        return -self.total_logprob / math.log(2) / size if size else 0.0

    @property
    def overlap_tokens(self) -> int:
        """The least number of tokens before a scored one, from the second window on."""
        return self.window_tokens - self.stride_tokens

    def rows(self) -> Iterator[Row]:
        """Yields one row for each token."""
        for position, (token, token_id, value, offset) in enumerate(
            zip(self.tokens, self.token_ids, self.token_logprobs, self.text_offset, strict=True)
        ):
            yield {
                "position": position,
                "token": token,
                "token_id": token_id,
                "logprob": value,
                "probability": math.exp(value),
                "text_offset": offset,
            }

    def to_pandas(self) -> Any:  # noqa: ANN401 - pandas is not a dependency
        """Returns a ``pandas.DataFrame`` with a row for each token.

        Raises ``ImportError`` if pandas is not installed.
        """
        return frame(self.rows(), _SCORE_COLUMNS)

    def _repr_html_(self) -> str:
        shown = html.tinted(
            self.text, self.tokens, self.token_logprobs, self.text_offset, self.top_logprobs
        )
        measures = {
            "tokens": len(self.tokens),
            "total": f"{self.total_logprob:.2f}",
            "perplexity": f"{self.perplexity:.2f}",
            "bits per byte": f"{self.bits_per_byte:.3f}",
        }
        return shown + html.figures(measures)


class ContinuationScore(msgspec.Struct, frozen=True):
    """How likely a continuation is after its context, as lm-evaluation-harness defines it.

    ``logprob`` is the sum over its ``tokens`` tokens, in nats. ``is_greedy``: each of them is the
    likeliest one at its place.
    """

    text: str
    logprob: float
    tokens: int
    is_greedy: bool


def completion_of(answer: wire.Completion) -> TextCompletion:
    """Returns an answer of the completion service as the library gives it."""
    return TextCompletion(
        answer.id,
        answer.created,
        answer.model,
        [_choice_of(choice) for choice in answer.choices],
        answer.usage,
        answer.system_fingerprint,
        None if answer.infill is _UNSET else answer.infill,
    )


def chunk_of(chunk: wire.Chunk) -> TextChunk:
    """Returns a chunk of the completion service as the library gives it."""
    return TextChunk(
        chunk.id,
        chunk.created,
        chunk.model,
        [_choice_of(choice) for choice in chunk.choices],
        chunk.system_fingerprint,
        None if chunk.usage is _UNSET else chunk.usage,
        None if chunk.obfuscation is _UNSET else chunk.obfuscation,
        None if chunk.infill is _UNSET else chunk.infill,
    )


def _choice_of(choice: wire.Choice) -> TextChoice:
    return TextChoice(
        choice.text,
        choice.index,
        choice.logprobs,
        choice.finish_reason,
        None if choice.token_ids is _UNSET else choice.token_ids,
        None if choice.prompt_token_ids is _UNSET else choice.prompt_token_ids,
        None
        if isinstance(choice.prompt_logprobs, msgspec.UnsetType)
        else read_prompt_logprobs(choice.prompt_logprobs),
    )
