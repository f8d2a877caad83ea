"""Prompt lookup: what followed the last tokens before is drafted, and verified in one step.

Lossless: each row is drawn from as if it were alone, and a draft only decides whether the rows
after it hold. So it may depend on time, where nothing else does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf

import numpy as np

from afterword.engine.batching.sequence import Guess, Sequence, TokenIds

MOST_SEQUENCES = 4
"""With more sequences at once, rows cost more than what they could save."""
_MOST_TOKENS = 16
_LONGEST_MATCH = 8
_CANDIDATES = 16
_SHARE_OF_NEWS = 0.15
"""How much of what was measured last counts in the average."""


class StepCost:
    """What a step of rows that decode costs: a base, most of it reading weights, and each row."""

    def __init__(self) -> None:
        self._base_s = 0.0
        self._row_s = 0.0

    def observe(self, *, rows: int, drafted: int, took_s: float) -> None:
        """Learn from a step that computed ``rows`` rows and no prompt, ``drafted`` of them."""
        if drafted:
            self._row_s = _average(self._row_s, max(took_s - self._base_s, 0.0) / rows)
        else:
            self._base_s = _average(self._base_s, max(took_s - self._row_s * rows, 0.0))

    def row_share(self, rows: int) -> float:
        """Which part of a step of ``rows`` rows is spent on them; a half until it was measured.

        A drafted token pays where it is likelier than this to be right.
        """
        if not self._base_s or not self._row_s:
            return 0.5
        of_rows_s = rows * self._row_s
        return of_rows_s / (self._base_s + of_rows_s)


def make_guesses(sequences: SequenceOf[Sequence], row_share: float) -> int:
    """Guess how each sequence goes on; how many tokens of each guess are worth computing.

    The number is the same for all, so that a runner computes them side by side. Guesses are made
    and compared with what comes also where it is 0: that is how it becomes known when they pay.
    """
    worth = _MOST_TOKENS
    for sequence in sequences:
        slot = sequence.slot
        if slot is None:
            raise AssertionError("a sequence that decodes has a slot")
        left = sequence.limit - sequence.length - 1
        found = look_up(slot.tokens[: sequence.length], _MOST_TOKENS)
        sequence.guess.tokens = found.tolist()
        worth = min(worth, left, len(found), _worth(sequence.guess, row_share))
    return max(worth, 0)


def look_up(tokens: TokenIds, most: int) -> TokenIds:
    """What followed the latest of the longest earlier matches of the last tokens, two at least.

    ``most`` tokens or none: where the end comes first, what followed is taken to repeat itself.
    """
    end = len(tokens)
    if end < 3:
        return tokens[:0]
    ends = np.flatnonzero((tokens[1 : end - 1] == tokens[-1]) & (tokens[: end - 2] == tokens[-2]))
    best, best_length = 0, 0
    for after in (ends[-_CANDIDATES:] + 2).tolist():
        longest = min(_LONGEST_MATCH, after)
        differs = np.flatnonzero(tokens[after - longest : after] != tokens[end - longest :])
        length = longest - 1 - int(differs[-1]) if len(differs) else longest
        if length >= best_length:
            best, best_length = after, length
    return np.resize(tokens[best:], most) if best_length else tokens[:0]


def learn(guess: Guess, drawn: SequenceOf[int]) -> None:
    """Compare a guess with what was drawn, up to where they part."""
    for guessed, token in zip(guess.tokens, drawn, strict=False):
        right = guessed == token
        guess.likely += _SHARE_OF_NEWS * (right - guess.likely)
        if not right:
            break
    guess.tokens = []


def _worth(guess: Guess, row_share: float) -> int:
    """The longest draft whose last token is likelier than ``row_share`` to be right."""
    if guess.likely <= row_share:
        return 0
    if guess.likely >= 1 or row_share <= 0:
        return _MOST_TOKENS
    return min(_MOST_TOKENS, int(math.log(row_share) / math.log(guess.likely)))


def _average(old: float, new: float) -> float:
    return old + _SHARE_OF_NEWS * (new - old) if old else new
