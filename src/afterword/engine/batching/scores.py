"""What scoring found at each position of a slot's tokens, kept so that it is never found again."""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

from afterword.core.job import ScoredPrompt


class Scores:
    """Log-probabilities of the tokens at positions 1 to ``known``, with ``k`` top entries each.

    Arrays are indexed by position; index 0 is unused, since nothing predicts the first token.
    They grow by doubling, so a slot that never scores costs nothing.
    """

    __slots__ = ("_logprobs", "_top_ids", "_top_logprobs", "k", "known")

    def __init__(self, k: int = 0) -> None:
        self.k = k
        self.known = 0
        self._logprobs = np.empty(0, np.float64)
        self._top_ids = np.empty((0, k), np.int32)
        self._top_logprobs = np.empty((0, k), np.float64)

    def append(
        self, logprob: float, top_ids: npt.NDArray[np.int64], top_logprobs: npt.NDArray[np.float64]
    ) -> None:
        """Add what was found at position ``known + 1``."""
        at = self.known + 1
        if at >= len(self._logprobs):
            self._grow(max(64, 2 * at))
        self._logprobs[at] = logprob
        self._top_ids[at] = top_ids
        self._top_logprobs[at] = top_logprobs
        self.known = at

    def trim(self, length_tokens: int) -> None:
        """Forget positions that a prefix of ``length_tokens`` tokens does not have."""
        self.known = min(self.known, max(0, length_tokens - 1))

    def fork(self, length_tokens: int) -> Scores:
        """A copy that knows the positions of a prefix of ``length_tokens`` tokens."""
        copy = Scores(self.k)
        copy.known = min(self.known, max(0, length_tokens - 1))
        end = copy.known + 1
        copy._logprobs = self._logprobs[:end].copy()
        copy._top_ids = self._top_ids[:end].copy()
        copy._top_logprobs = self._top_logprobs[:end].copy()
        return copy

    def prompt(self, length_tokens: int, k: int) -> ScoredPrompt:
        """Positions 1 to ``length_tokens - 1``, with the first ``k`` of the top entries."""
        span = slice(1, length_tokens)
        return ScoredPrompt(
            array("d", self._logprobs[span].tobytes()),
            array("i", np.ascontiguousarray(self._top_ids[span, :k]).tobytes()),
            array("d", np.ascontiguousarray(self._top_logprobs[span, :k]).tobytes()),
        )

    def _grow(self, size: int) -> None:
        for name in ("_logprobs", "_top_ids", "_top_logprobs"):
            old = getattr(self, name)
            new = np.empty((size, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)
