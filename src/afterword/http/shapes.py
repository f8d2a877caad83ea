"""What differs between the routes that complete text: how a body is read and an answer looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from starlette.types import Scope

from afterword.completion.plan import Plan
from afterword.completion.service import Caller, CompletionService
from afterword.completion.stream import CompletionStream
from afterword.core import wire
from afterword.http.stream import DONE, frames
from afterword.http.whole import encode_answer


class Shape(Protocol):
    """The shape of one answer, whole or in a stream."""

    @property
    def end(self) -> bytes:
        """The last frame of a stream that went well."""

    async def whole(self, answer: CompletionStream) -> list[bytes]:
        """Returns the body of an answer that is not streamed, in parts. Raises ``ApiError``."""

    def frames(self, answer: CompletionStream, chunks: Sequence[wire.Chunk]) -> bytes:
        """Returns the frames of chunks of a stream."""


class Reading(Protocol):
    """How a route reads its bodies."""

    async def plan(
        self, service: CompletionService, body: bytes, scope: Scope, caller: Caller
    ) -> tuple[Plan, Shape]:
        """Returns the plan of a body, and the shape of its answer. Raises ``ApiError``."""


class CompletionShape:
    """OpenAI's shape of a text completion."""

    end = DONE

    async def whole(self, answer: CompletionStream) -> list[bytes]:
        """See ``Shape``."""
        return await encode_answer(answer)

    def frames(self, answer: CompletionStream, chunks: Sequence[wire.Chunk]) -> bytes:  # noqa: ARG002 - the protocol
        """See ``Shape``."""
        return frames(chunks)


class CompletionReading:
    """``POST /v1/completions``."""

    def __init__(self) -> None:
        self._shape = CompletionShape()

    async def plan(
        self, service: CompletionService, body: bytes, scope: Scope, caller: Caller
    ) -> tuple[Plan, Shape]:
        """See ``Reading``. The path may name the model."""
        model = scope["path_params"].get("model")
        return await service.plan(body, model=model, caller=caller), self._shape
