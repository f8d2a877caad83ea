"""Shares with their uncertainty, and a paired test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

_Z = 1.959963984540054
"""The 97.5th percentile of the normal distribution."""


class Share(msgspec.Struct, frozen=True):
    """How many of some items meet a measure, with Wilson's interval of 95 %.

    ``stderr`` is the standard error of the mean, as lm-evaluation-harness gives it; None for one
    item.
    """

    value: float
    low: float
    high: float
    stderr: float | None
    items: int


class PairedTest(msgspec.Struct, frozen=True):
    """McNemar's exact test of two models on the same items, two-sided."""

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float


def share(met: Sequence[bool]) -> Share:
    """Returns the share of true values. Raises ``ValueError`` for none."""
    count = len(met)
    if not count:
        raise ValueError("there is no share of no items")
    value = sum(met) / count
    square = _Z * _Z
    middle = (value + square / (2 * count)) / (1 + square / count)
    half = _Z / (1 + square / count) * math.sqrt(
        value * (1 - value) / count + square / (4 * count * count)
    )  # fmt: skip
    stderr = math.sqrt(value * (1 - value) / (count - 1)) if count > 1 else None
    # Of none and of all, the bound is exact; the formula leaves a rounding error.
    low = middle - half if value else 0.0
    high = middle + half if value < 1 else 1.0
    return Share(value, low, high, stderr, count)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
    """Returns the test of two models.

    If they are equally good, each item that they answer differently is a fair coin; ``p_value`` is
    how often coins fall at least as unevenly.
    """
    pairs = list(zip(first, second, strict=True))
    counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True))]
    both, only_first, only_second = counts
    differing = only_first + only_second
    fewer = min(only_first, only_second)
    # Whole numbers, so that thousands of items lose nothing. Each binomial coefficient comes from
    # the one before: alone, those in the middle of ten thousand take a millisecond each.
    ways = tail = 1
    for k in range(fewer):
        ways = ways * (differing - k) // (k + 1)
        tail += ways
    p_value = min(2 * tail / 2**differing, 1.0)
    return PairedTest(both, only_first, only_second, len(pairs) - sum(counts), p_value)
