"""How many examples a test of a law tries."""

from __future__ import annotations

from hypothesis import settings

_WHOLE = 100
"""Examples of hypothesis's own default profile."""


def examples(count: int) -> int:
    """Returns ``count``, or a share of it in a profile of fewer examples (``make test-fast``)."""
    return max(1, count * settings().max_examples // _WHOLE)
