"""What a record may say: counts that a request can have, moments of a calendar, text that is text.

Counts come from engines and from other servers, and records from files. None of them is believed.
"""

from __future__ import annotations

import logging
import math

import msgspec
from msgspec.structs import replace

from afterword.core.account import Spent, UsageRecord
from afterword.core.limits import MOST_TOKENS
from afterword.core.moments import END_OF_TIME_S

_log = logging.getLogger(__name__)

_LONGEST_MS = 1e15
_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens")


def bounded(spent: Spent, most_tokens: int, *, request_id: str) -> Spent:
    """Returns what a request used, within what was reserved for it. Logs what is clamped.

    Cached tokens are part of the prompt; prompt and completion are at most ``most_tokens``.
    """
    most = min(max(_whole(most_tokens), 0), MOST_TOKENS)
    prompt = _within(spent.prompt_tokens, most)
    first_ms = spent.first_token_ms
    believed = replace(
        spent,
        prompt_tokens=prompt,
        cached_tokens=_within(spent.cached_tokens, prompt),
        completion_tokens=_within(spent.completion_tokens, most - prompt),
        first_token_ms=None if first_ms is None else _time_ms(first_ms),
        duration_ms=_time_ms(spent.duration_ms),
    )
    for name in _COUNTS:
        said, kept = getattr(spent, name), getattr(believed, name)
        if said != kept or type(said) is not int:
            _log.warning(
                "%s: %s is %.40s, recorded as %d: the request may take %d tokens at most",
                request_id, name, _shown(said), kept, most,
            )  # fmt: skip
    return believed


def clean(text: str) -> str:
    """Returns text that every database takes: without null characters and halves of characters."""
    if "\0" not in text and text.isprintable():
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def fault_of(record: UsageRecord) -> str | None:
    """Returns why a record cannot be true, or None."""
    for name in _COUNTS:
        count = getattr(record, name)
        if type(count) is not int or not 0 <= count <= MOST_TOKENS:
            return f"{name} is {_shown(count)}: expected 0 to {MOST_TOKENS}"
    if not _is_between(record.started_at, 0, END_OF_TIME_S):
        return f"started_at is {_shown(record.started_at)}: expected Unix seconds up to year 9999"
    if not _is_between(record.duration_ms, 0, _LONGEST_MS):
        return f"duration_ms is {_shown(record.duration_ms)}: expected 0 to {_LONGEST_MS:g}"
    first_ms = record.first_token_ms
    if first_ms is not None and not _is_between(first_ms, 0, _LONGEST_MS):
        return f"first_token_ms is {_shown(first_ms)}: expected 0 to {_LONGEST_MS:g}"
    for name, text in msgspec.structs.asdict(record).items():
        if isinstance(text, str) and clean(text) != text:
            return f"{name} has characters that a database does not take"
    return None


def _whole(count: object) -> int:
    """Returns a number as an integer. What is not a number is 0."""
    if isinstance(count, bool):
        return 0
    if isinstance(count, float):
        bound = float(MOST_TOKENS)
        return 0 if math.isnan(count) else int(min(max(count, -bound), bound))
    return int(count) if isinstance(count, int) else 0


def _within(count: object, most: int) -> int:
    return min(max(_whole(count), 0), most)


def _time_ms(milliseconds: float) -> float:
    if not isinstance(milliseconds, int | float) or math.isnan(milliseconds):
        return 0.0
    return float(min(max(milliseconds, 0.0), _LONGEST_MS))


def _is_between(number: object, least: float, most: float) -> bool:
    return isinstance(number, int | float) and bool(least <= number <= most)


def _shown(value: object) -> str:
    """Returns a value's first digits; an integer may have more than can be written."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 70:
        return f"{'-' if value < 0 else ''}(an integer of {value.bit_length()} bits)"
    return repr(value)[:40]
