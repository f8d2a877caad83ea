"""Scores (log-probabilities) of consecutive prompt tokens."""

from __future__ import annotations

from array import array

import msgspec
import numpy as np

from afterword.core.job import ScoredPrompt
from afterword.engine.arrays import Ids, LogProbs, TokenIds


class Score(msgspec.Struct, frozen=True):
    """The score of one token: its ``logprob``, and ``top_ids`` [k] with ``top_logprobs`` [k].

    They are the likeliest tokens, likeliest first, and then those that the job asks for; an id
    that is among the likeliest is not repeated. ``rank`` is 0 unless it is asked for.
    """

    logprob: float
    top_ids: Ids
    top_logprobs: LogProbs
    rank: int = 0

    def of_another(self, logprob: float) -> Score:
        """Returns the score of another token at the same position."""
        return Score(logprob, self.top_ids, self.top_logprobs)


class ScoreSpan(msgspec.Struct, frozen=True):
    """Entries of n consecutive positions: ``logprobs`` [n], ``top_ids``, ``top_logprobs`` [n, k].

    Top entries are ordered, likeliest first, so the first j of them are the top j for ``j <= k``.
    """

    logprobs: LogProbs
    top_ids: TokenIds
    top_logprobs: LogProbs

    def __len__(self) -> int:
        return len(self.logprobs)

    @property
    def k(self) -> int:
        """Number of top entries at each position."""
        return int(self.top_ids.shape[1])

    @property
    def size_bytes(self) -> int:
        """Bytes of the arrays."""
        return self.logprobs.nbytes + self.top_ids.nbytes + self.top_logprobs.nbytes

    def part(self, start: int, end: int) -> ScoreSpan:
        """Returns the entries ``start`` to ``end`` as a view of the same memory."""
        span = slice(start, end)
        return ScoreSpan(self.logprobs[span], self.top_ids[span], self.top_logprobs[span])

    def copy(self) -> ScoreSpan:
        """Returns a copy in its own memory."""
        return ScoreSpan(self.logprobs.copy(), self.top_ids.copy(), self.top_logprobs.copy())


class Scores:
    """The scores of one prompt, filled from its first token on.

    Entry i scores the token at position i, given the tokens before it; the first ``known`` entries
    are filled. No row predicts the first token: its entry counts as known and has no meaning.
    Entries never change.

    ``k`` counts the likeliest tokens of each entry, and ``scored`` the tokens after them that the
    job asks for. Scores are ``shared`` with other prompts if they have neither these nor ranks.
    """

    __slots__ = ("_all", "_ranks", "k", "known", "shared")

    def __init__(
        self, length_tokens: int, k: int, *, scored: int = 0, ranked: bool = False
    ) -> None:
        self.k = k
        self.known = 1
        self.shared = not (scored or ranked)
        self._ranks = np.zeros(length_tokens if ranked else 0, np.int32)
        width = k + scored
        self._all = ScoreSpan(
            np.zeros(length_tokens, np.float64),
            np.zeros((length_tokens, width), np.int32),
            np.zeros((length_tokens, width), np.float64),
        )

    def cover(self, other: Scores) -> bool:
        """Whether an entry of these scores has all that an entry of others needs."""
        return self.shared and other.shared and self.k >= other.k

    @property
    def complete(self) -> bool:
        """Whether all entries are known."""
        return self.known == len(self._all)

    def put(self, position: int, score: Score) -> None:
        """Add the entry after the last known one; do nothing if it is known already.

        A score may have more of the likeliest tokens than these entries.
        """
        if position < self.known:
            return
        if position > self.known:
            raise AssertionError(f"entry {position} found before entry {self.known}")
        width = self._all.k
        self._all.logprobs[position] = score.logprob
        self._all.top_ids[position] = score.top_ids[:width]
        self._all.top_logprobs[position] = score.top_logprobs[:width]
        if len(self._ranks):
            self._ranks[position] = score.rank
        self.known += 1

    def take(self, entries: ScoreSpan, start: int) -> None:
        """Add those entries, the first at position ``start``, that continue the known ones."""
        end = start + len(entries)
        if not start <= self.known < end:
            return
        new = slice(self.known - start, None)
        self._all.logprobs[self.known : end] = entries.logprobs[new]
        self._all.top_ids[self.known : end] = entries.top_ids[new, : self.k]
        self._all.top_logprobs[self.known : end] = entries.top_logprobs[new, : self.k]
        self.known = end

    def part(self, start: int, end: int) -> ScoreSpan:
        """Returns the entries of positions ``start`` to ``end`` as a view of the same memory."""
        return self._all.part(start, end)

    def scored_prompt(self) -> ScoredPrompt:
        """Returns all entries but the first; all must be known."""
        entries = self._all
        return ScoredPrompt(
            array("d", entries.logprobs[1:].tobytes()),
            array("i", entries.top_ids[1:].tobytes()),
            array("d", entries.top_logprobs[1:].tobytes()),
            array("i", self._ranks[1:].tobytes()),
        )
