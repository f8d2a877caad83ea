"""Spans and moments as people write them: 90d, 12h, 2026-11-25, 2026-11-25T14:00."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from afterword.core.errors import InvalidRequest

END_OF_TIME_S = 253_402_300_799.0
"""The last second of the year 9999, in UTC. Nobody writes a later moment."""
LONGEST_SPAN_DAYS = 36_525
_SPAN = re.compile(r"([0-9]{1,6})([smhdw])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_span(text: str, *, param: str) -> float:
    """Returns the seconds of ``90d``, ``12h`` or ``30m``. Raises ``InvalidRequest``."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise InvalidRequest(
            f"'{param}' is {text[:40]!r}: expected a number and s, m, h, d or w, as in 90d",
            param=param,
        )
    span_s = int(found[1]) * _UNITS_S[found[2]]
    if span_s > LONGEST_SPAN_DAYS * _UNITS_S["d"]:
        raise InvalidRequest(
            f"'{param}' is {text[:40]!r}: expected at most {LONGEST_SPAN_DAYS}d (100 years)",
            param=param,
        )
    return float(span_s)


def parse_moment(text: str, *, now_s: float, param: str) -> float:
    """Returns the Unix seconds of a date or time, or of a span before ``now_s``.

    A time without a zone is in UTC. Raises ``InvalidRequest``.
    """
    if _SPAN.fullmatch(text):
        return now_s - parse_span(text, param=param)
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"'{param}' is {text[:40]!r}: expected 2026-11-25, 2026-11-25T14:00 or 7d", param=param
        ) from None


def iso(moment_s: float) -> str:
    """Returns a moment as 2026-11-25T14:00:00Z."""
    if not 0 <= moment_s <= END_OF_TIME_S:
        # Of a ledger that somebody else wrote.
        return f"{moment_s:g} s of Unix time"
    return datetime.fromtimestamp(moment_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
