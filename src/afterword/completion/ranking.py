"""Ranks candidates, to show the best ones (A6)."""

from __future__ import annotations

from collections.abc import Sequence


def best(scores: Sequence[tuple[float, int]], n: int) -> list[int]:
    """Returns the indices of the n highest mean log-probabilities, best first.

    On a tie the lower index comes first. ``scores`` has the sum of log-probabilities and the number
    of tokens of each candidate. A candidate without tokens has mean 0, like a certain token.
    """

    def mean(index: int) -> float:
        total, tokens = scores[index]
        return total / tokens if tokens else 0.0

    return sorted(range(len(scores)), key=lambda index: (-mean(index), index))[:n]
