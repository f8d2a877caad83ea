"""Budget periods: days and months of UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from afterword.core.account import Period


def period_of(moment_s: float, per: Period) -> str:
    """Returns the name of the period that a moment (Unix seconds) falls into."""
    shape = "%Y-%m-%d" if per == "day" else "%Y-%m"
    return datetime.fromtimestamp(moment_s, UTC).strftime(shape)
