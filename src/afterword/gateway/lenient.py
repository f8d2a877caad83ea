"""Reads JSON that a strict decoder refuses, as far as its meaning is clear.

Servers write ``0.0`` for an index, null for an empty text, NaN for a score, half a surrogate pair,
bytes that are not UTF-8. The strict decoder comes first, because it is fast; this one is for the
rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import msgspec

from afterword.core.wire import LOWEST
from afterword.gateway.failures import StreamBroke
from afterword.gateway.long_payload import LongPayload, read_long

T = TypeVar("T")

_MOST_DIGITS = 32
_MOST_EXACT = 2.0**53


def decoder(wanted: type[T]) -> Callable[[bytes | LongPayload], T]:
    """Returns a function from the bytes of a JSON value to ``wanted``.

    It raises ``StreamBroke`` if the value cannot be read.
    """
    strict = msgspec.json.Decoder(wanted).decode

    def decode(payload: bytes | LongPayload) -> T:
        try:
            return strict(payload)  # type: ignore[arg-type] # what is long is a TypeError
        except TypeError:
            if not isinstance(payload, LongPayload):
                raise
            return read_long(payload, wanted, _decoder)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _read(bytes(payload), wanted)

    return decode


@cache
def _decoder(wanted: Any) -> Callable[[bytes | LongPayload], Any]:  # noqa: ANN401 - any type
    return decoder(wanted)


def _read(payload: bytes, wanted: type[T]) -> T:
    try:
        return msgspec.convert(_clear(parse(payload)), wanted)
    except (msgspec.ValidationError, RecursionError):
        raise StreamBroke("it sent JSON of another shape than an answer has") from None


def parse(payload: bytes | LongPayload) -> Any:  # noqa: ANN401 - any JSON value
    """Returns a JSON value. Raises ``StreamBroke`` if there is none."""
    try:
        return json.loads(bytes(payload).decode("utf-8", "replace"), parse_int=_integer)
    except (ValueError, RecursionError):
        raise StreamBroke("it sent something that is not JSON") from None


def _integer(digits: str) -> int | float:
    # Thousands of digits take Python long, and longer ones are an error there.
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def _clear(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Returns a value without nulls in objects, so that defaults take their place."""
    if isinstance(value, dict):
        return {_whole(key): _clear(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_clear(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return LOWEST
        return int(value) if value.is_integer() and abs(value) < _MOST_EXACT else value
    return _whole(value) if isinstance(value, str) else value


def _whole(text: str) -> str:
    """Returns a text in which pairs of surrogates are characters, and halves are U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def count_of(value: object) -> int | None:
    """Returns the whole number that a JSON value is, whatever its size; None if it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None
