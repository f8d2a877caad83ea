"""Values of Python as JSON, without a guess: bytes, sets, dates and NaN are refused by name."""

from __future__ import annotations

import json

import msgspec

from afterword.core.errors import InvalidRequest


def written(name: str, value: object) -> msgspec.Raw:
    """Returns a value as JSON. Raises ``InvalidRequest`` for what JSON cannot say."""
    try:
        # msgspec would write bytes in base64, sets in any order, and null for NaN.
        return msgspec.Raw(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        reason = error.reason if isinstance(error, UnicodeEncodeError) else error
        raise InvalidRequest(
            f"Invalid value for '{name}': it cannot be written as JSON: {reason}", param=name
        ) from error
