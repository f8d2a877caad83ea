"""The seam of the library: a model in this process, or one behind HTTP."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

import msgspec

from afterword.library.answers import TextChunk, TextCompletion


class ModelFacts(msgspec.Struct, frozen=True):
    """The model that requests without ``model`` get. ``context_tokens`` bounds prompt and answer.

    ``fingerprint`` changes with anything that may change an answer (D3).
    """

    name: str
    context_tokens: int
    fingerprint: str


class SpecialNames(msgspec.Struct, frozen=True):
    """The names of two special tokens, None if the vocabulary has none."""

    bos_token: str | None
    eos_token: str | None


class ChunkSource(Protocol):
    """An admitted stream. It is pulled and closed from the backend's event loop."""

    async def pull(self) -> list[TextChunk]:
        """Returns the next chunks, an empty list at the end. Raises ``ApiError``."""

    async def close(self) -> None:
        """End the request, and free what it holds. Idempotent.

        A pull that waits returns the end.
        """


class Backend(Protocol):
    """Answers requests. All of it runs in one event loop. Methods raise ``ApiError``.

    Bodies are JSON as of POST /v1/completions.
    """

    @property
    def facts(self) -> ModelFacts:
        """The default model."""

    @property
    def scored_name(self) -> str:
        """The name of the default model under which token ids are its own.

        Raises ``InvalidRequest`` if what it is asked for is an alias that takes no ids.
        """

    async def complete(self, body: bytes) -> TextCompletion:
        """Returns the whole answer to a body without ``stream``."""

    async def open(self, body: bytes) -> ChunkSource:
        """Returns the stream of a body with ``stream``. Refusals are raised here (S6)."""

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Returns the ids of a text."""

    async def detokenize(self, ids: msgspec.Raw) -> str:
        """Returns the text of the model's own ids, which are JSON."""

    async def special_names(self) -> SpecialNames:
        """Returns the names of special tokens."""


Opener: TypeAlias = Callable[[], AbstractAsyncContextManager[Backend]]
"""Opens a backend in the running event loop, and closes it at the end."""
