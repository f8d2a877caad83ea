"""Spans and moments as people write them: 90d, 12h, 2026-11-25, 2026-11-25T14:00."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from afterword.core.errors import InvalidRequest

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
    return float(int(found[1]) * _UNITS_S[found[2]])


def parse_moment(text: str, *, now_s: float, param: str) -> float:
    """Returns the Unix seconds of a date or time, or of a span before ``now_s``.

    A time without a zone is in UTC. Raises ``InvalidRequest``.
    """
    if _SPAN.fullmatch(text):
        return now_s - parse_span(text, param=param)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"'{param}' is {text[:40]!r}: expected 2026-11-25, 2026-11-25T14:00 or 7d", param=param
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def iso(moment_s: float) -> str:
    """Returns a moment as 2026-11-25T14:00:00Z."""
    return datetime.fromtimestamp(moment_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
