"""Writes JSON in slices where it is long, because an encoder in C holds the GIL to its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import msgspec

_encode = msgspec.json.Encoder().encode
_SLICE = 1 << 16
"""Characters of a text, or items of an array."""


def is_long(body: Mapping[str, object]) -> bool:
    """Returns whether a thread should write an object: it has a long text or array."""
    return any(_is_long(value) for value in body.values())


def encoded(body: Mapping[str, object]) -> bytes:
    """Returns an object as JSON, just as ``msgspec`` writes it."""
    if not is_long(body):
        return _encode(body)
    parts: list[bytes] = []
    for name, value in body.items():
        parts += (b"," if parts else b"{", _encode(name), b":", *_parts(value))
    return b"".join((*parts, b"}"))


def _is_long(value: object) -> TypeGuard[str | list[Any] | tuple[Any, ...]]:
    return isinstance(value, (str, list, tuple)) and len(value) > _SLICE


def _parts(value: object) -> Iterator[bytes]:
    if not _is_long(value):
        yield _encode(value)
        return
    is_text = isinstance(value, str)
    yield b'"' if is_text else b"["
    for at in range(0, len(value), _SLICE):
        if at and not is_text:
            yield b","
        yield _encode(value[at : at + _SLICE])[1:-1]
    yield b'"' if is_text else b"]"
