"""Chunks of ``/v1/completions`` streams, as upstreams write them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from afterword.core.token_text import token_text
from afterword.core.wire import LOWEST
from afterword.gateway.lenient import decoder

_MOST_RANK = 2**31 - 1


class ChatLogprob(msgspec.Struct):
    """A token in the shape of a chat, with the likeliest of its position."""

    token: str = ""
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: list[ChatLogprob] | None = None

    @property
    def name(self) -> str:
        """The token as the contract writes it (L4)."""
        if self.bytes is None or not all(0 <= byte < 256 for byte in self.bytes):
            return self.token
        return token_text(bytes(self.bytes))

    @property
    def value(self) -> float:
        """The log-probability; null stands for minus infinity."""
        return LOWEST if self.logprob is None else self.logprob


class ChoiceLogprobs(msgspec.Struct):
    """Log-probabilities of a choice's new tokens; with ``echo`` those of the prompt come first.

    ``content`` replaces the rest if the server writes the shape of a chat.
    """

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None
    content: list[ChatLogprob] | None = None

    @property
    def in_arrays(self) -> ChoiceLogprobs:
        """The same in the shape of a completion."""
        if self.tokens or not self.content:
            return self
        return ChoiceLogprobs(
            [one.name for one in self.content],
            [one.value for one in self.content],
            [{top.name: top.value for top in one.top_logprobs or ()} for one in self.content],
        )


class RankedLogprob(msgspec.Struct):
    """A token of the prompt in vLLM's shape, as far as it is read."""

    rank: Annotated[int, msgspec.Meta(ge=1, le=_MOST_RANK)]


class ChoiceDelta(msgspec.Struct):
    """The part of a chunk that belongs to one choice. The stream reader judges what is Any."""

    index: Any = None
    text: str | None = None
    logprobs: ChoiceLogprobs | None = None
    finish_reason: Any = None
    token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, RankedLogprob] | None] | None = None
    delta: Any = None
    message: Any = None


class _Chunk(msgspec.Struct):
    choices: list[ChoiceDelta] | None = None
    usage: Any = None
    error: Any = None
    object: Any = None
    message: Any = None
    detail: Any = None


decode_chunk = decoder(_Chunk)
"""Returns the chunk in a payload. Raises ``StreamBroke`` if there is none."""
