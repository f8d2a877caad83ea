"""Takes token ids out of a long body in slices, because a parser holds the GIL to its end.

What is not plain arrays of numbers stays where it is, for the parser and its errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from afterword.core.errors import InvalidRequest

_SLICE_BYTES = 1 << 15
_MOST_IDS = 1 << 21
"""No model has so long a context, and to free more objects at once would hold the GIL."""
_NAME = b'"prompt"'
_NUMBERS = re.compile(rb"\s*:\s*(?=\[\s*[\[\d-])")
_INNER = re.compile(rb"\s*\[")
_NEXT = re.compile(rb"\s*([,\]])")
_MARK = b"[]"


class Lifted(msgspec.Struct, frozen=True):
    """A body whose ``prompt`` is ``[]``, and the prompt that it had there."""

    rest: bytes
    prompt: list[Any]


def lift_ids(body: bytes, most_prompts: int) -> Lifted | None:
    """Take the token ids of the first ``prompt`` out of a body; None if it has none.

    Raises ``InvalidRequest`` for more than ``most_prompts`` arrays, and for more ids in one than
    any context has. It does not look at the rest.
    """
    # Within a string a quote has a backslash, so this is a whole string.
    named = body.find(_NAME)
    begun = None if named < 0 else _NUMBERS.match(body, named + len(_NAME))
    if begun is None:
        return None
    start = begun.end()
    try:
        nested = _INNER.match(body, start + 1)
        if nested is None:
            end = body.index(b"]", start)
            ids = _ids(body, start + 1, end)
        else:
            ids, end = _arrays(body, nested.end(), most_prompts)
    except (ValueError, msgspec.DecodeError):
        return None
    return Lifted(b"%b%b%b" % (body[:start], _MARK, body[end + 1 :]), ids)


def _arrays(body: bytes, at: int, most: int) -> tuple[list[Any], int]:
    """Returns the arrays from the inside of the first on, and where their array ends.

    Raises ``ValueError`` if the body has something else.
    """
    arrays: list[Any] = []
    while True:
        end = body.index(b"]", at)
        arrays.append(_ids(body, at, end))
        if len(arrays) > most:
            raise _too_many(f"an array of at most {most} prompts")
        after = _NEXT.match(body, end + 1)
        if after is None:
            raise ValueError("an array is followed by something else")
        if after[1] == b"]":
            return arrays, after.start(1)
        inner = _INNER.match(body, after.end())
        if inner is None:
            raise ValueError("an array is followed by something else")
        at = inner.end()


def _ids(body: bytes, start: int, end: int) -> list[Any]:
    ids: list[Any] = []
    for part in _slices(body, start, end):
        values = msgspec.json.decode(b"[%b]" % part)
        if ids and not values:
            raise ValueError("a comma without a value")
        ids += values
        if len(ids) > _MOST_IDS:
            raise _too_many(f"at most {_MOST_IDS} token ids in a prompt")
    return ids


def _too_many(wanted: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for 'prompt': expected {wanted}, but got more.",
        param="prompt",
        code="invalid_value",
    )


def _slices(body: bytes, start: int, end: int) -> Iterator[bytes]:
    """Yields the text between two places, cut at commas."""
    while True:
        comma = body.find(b",", start + _SLICE_BYTES, end)
        if comma < 0:
            yield body[start:end]
            return
        yield body[start:comma]
        start = comma + 1
