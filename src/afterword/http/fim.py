"""``POST /v1/fim/completions``: Mistral's infill, answered in the shape of a chat (F5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from starlette.types import Scope

from afterword.completion.fim_request import decode_fim
from afterword.completion.plan import Plan
from afterword.completion.service import Caller, CompletionService
from afterword.completion.stream import CompletionStream
from afterword.core import wire
from afterword.core.job import FinishReason
from afterword.http.frames import frame
from afterword.http.shapes import Shape
from afterword.http.stream import DONE

_encode = msgspec.json.Encoder().encode


class FimMessage(msgspec.Struct, frozen=True):
    """A middle as the message of an assistant."""

    role: Literal["assistant"]
    content: str


class FimDelta(msgspec.Struct, frozen=True):
    """What a chunk adds to a message."""

    content: str


class FimChoice(msgspec.Struct, frozen=True):
    """One middle."""

    index: int
    message: FimMessage
    finish_reason: FinishReason | None


class FimChunkChoice(msgspec.Struct, frozen=True):
    """What a chunk adds to one middle."""

    index: int
    delta: FimDelta
    finish_reason: FinishReason | None


class FimCompletion(msgspec.Struct, frozen=True, tag_field="object", tag="chat.completion"):
    """A whole answer."""

    id: str
    created: int
    model: str
    choices: list[FimChoice]
    usage: wire.Usage
    system_fingerprint: str
    infill: wire.InfillReport | msgspec.UnsetType = msgspec.UNSET


class FimChunk(msgspec.Struct, frozen=True, tag_field="object", tag="chat.completion.chunk"):
    """One event of a stream. The chunk that ends the last choice has the usage."""

    id: str
    created: int
    model: str
    choices: list[FimChunkChoice]
    system_fingerprint: str
    usage: wire.Usage | msgspec.UnsetType | None = msgspec.UNSET
    obfuscation: str | msgspec.UnsetType = msgspec.UNSET
    infill: wire.InfillReport | msgspec.UnsetType = msgspec.UNSET


class FimShape:
    """The shape of one answer."""

    end = DONE

    def __init__(self, choices: int) -> None:
        self._left = choices

    async def whole(self, answer: CompletionStream) -> list[bytes]:
        """See ``Shape``."""
        completion = await answer.completion()
        choices = [
            FimChoice(choice.index, FimMessage("assistant", choice.text), choice.finish_reason)
            for choice in completion.choices
        ]
        return [
            _encode(
                FimCompletion(
                    completion.id,
                    completion.created,
                    completion.model,
                    choices,
                    completion.usage,
                    completion.system_fingerprint,
                    completion.infill,
                )
            )
        ]

    def frames(self, answer: CompletionStream, chunks: Sequence[wire.Chunk]) -> bytes:
        """See ``Shape``."""
        return b"".join(frame(self._chunk(answer, chunk)) for chunk in chunks)

    def _chunk(self, answer: CompletionStream, chunk: wire.Chunk) -> FimChunk:
        choices = [
            FimChunkChoice(choice.index, FimDelta(choice.text), choice.finish_reason)
            for choice in chunk.choices
        ]
        self._left -= sum(choice.finish_reason is not None for choice in choices)
        usage = chunk.usage
        # Mistral counts in the last chunk with a choice, asked or not.
        if choices and not self._left and not isinstance(usage, wire.Usage):
            usage = answer.usage
        return FimChunk(
            chunk.id,
            chunk.created,
            chunk.model,
            choices,
            chunk.system_fingerprint,
            usage,
            chunk.obfuscation,
            chunk.infill,
        )


class FimReading:
    """Reads Mistral's bodies."""

    async def plan(
        self,
        service: CompletionService,
        body: bytes,
        scope: Scope,  # noqa: ARG002 - the protocol
        caller: Caller,
    ) -> tuple[Plan, Shape]:
        """See ``Reading``."""
        request = await service.parse(body, decode_fim, caller)
        plan = await service.plan_request(request, len(body), caller)
        return plan, FimShape(plan.n * len(plan.jobs))
