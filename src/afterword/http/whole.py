"""A whole answer as JSON, made in slices: choice by choice, and long arrays in parts."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from afterword.completion.stream import CompletionStream
from afterword.core.wire import Choice, Logprobs

_encode = msgspec.json.Encoder().encode
_NO_CHOICES = b'"choices":[]'
_SLICE_ENTRIES = 256
_PART_BYTES = 1 << 20
_BYTE_COST = 1 / 400
_PIECE_COST = 10.0
"""Costs for ``Pace``, in microseconds: of making a byte of JSON, and of a choice or a slice."""
_EMPTY = Logprobs([], [], [], [])


async def encode_answer(answer: CompletionStream) -> list[bytes]:
    """Returns the body of an answer that is not streamed, in parts. Raises ``ApiError``.

    The loop is free between slices. Each choice is encoded as soon as it is there, so the objects
    of a long answer are never all in memory.
    """
    encoded: dict[int, list[bytes]] = {}
    async for choice in answer.choices():
        slices = encoded[choice.index] = []
        for part in encode_choice(choice):
            slices.append(part)
            await answer.pace.spend(_PIECE_COST + len(part) * _BYTE_COST)
    # Within JSON's strings a quote has a backslash, so this stands in the frame alone.
    head, tail = _encode(answer.whole([])).split(_NO_CHOICES)
    writer = _Parts()
    writer.add(head + b'"choices":[')
    for place, index in enumerate(sorted(encoded)):
        if place:
            writer.add(b",")
        for part in encoded.pop(index):
            writer.add(part)
            await answer.pace.spend(_PIECE_COST + len(part) * _BYTE_COST)
    writer.add(b"]" + tail)
    return writer.close()


class _Parts:
    """Joins small pieces of a body into parts of about a mebibyte."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._open: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes) -> None:
        self._open.append(piece)
        self._size += len(piece)
        if self._size >= _PART_BYTES:
            self.close()

    def close(self) -> list[bytes]:
        """Returns all parts."""
        if self._open:
            self._parts.append(b"".join(self._open))
            self._open, self._size = [], 0
        return self._parts


def encode_choice(choice: Choice) -> Iterator[bytes]:
    """Yields the JSON of a choice in slices. Its arrays lose what was written.

    To free all of a long choice at once would hold the loop for long.
    """
    logprobs = choice.logprobs
    if logprobs is None or len(logprobs.tokens) <= _SLICE_ENTRIES:
        yield _encode(choice)
        return
    rest = _encode(msgspec.structs.replace(choice, logprobs=_EMPTY))
    for name in Logprobs.__struct_fields__:
        # Within JSON's strings a quote has a backslash, so this stands in the frame alone.
        before, _, rest = rest.partition(b'"%b":[]' % name.encode())
        yield b'%b"%b":[' % (before, name.encode())
        values = getattr(logprobs, name)
        for start in range(0, len(values), _SLICE_ENTRIES):
            comma = b"," if start else b""
            part = values[start : start + _SLICE_ENTRIES]
            values[start : start + _SLICE_ENTRIES] = [None] * len(part)
            yield comma + _encode(part)[1:-1]
        yield b"]"
    yield rest
