"""Which of the candidates are shown (A6)."""

from __future__ import annotations

from collections.abc import Sequence


def best(scores: Sequence[tuple[float, int]], n: int) -> list[int]:
    """Indices of the n highest mean log-probabilities, best first, the lower index on a tie.

    ``scores`` are sums of log-probabilities and token counts; a candidate without tokens has
    mean 0, the mean of a certainty.
    """

    def mean(index: int) -> float:
        total, tokens = scores[index]
        return total / tokens if tokens else 0.0

    return sorted(range(len(scores)), key=lambda index: (-mean(index), index))[:n]
