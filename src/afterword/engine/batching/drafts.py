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
    """What a row more costs a step of rows that decode, and what a token costs.

    A row's cost follows from how many rows steps with and without drafts had, and how long they
    took; a token's from how many tokens came of all.
    """

    def __init__(self) -> None:
        self._plain: tuple[float, float] | None = None
        self._drafted: tuple[float, float] | None = None
        self._drawn: tuple[float, float] | None = None

    def observe(self, *, rows: int, drafted: int, drawn: int, took_s: float) -> None:
        """Learn from a step that computed ``rows`` rows and no prompt, ``drafted`` of them.

        ``drawn`` tokens came of it.
        """
        self._drawn = _average(self._drawn, (drawn, took_s))
        if drafted:
            self._drafted = _average(self._drafted, (rows, took_s))
        else:
            self._plain = _average(self._plain, (rows, took_s))

    @property
    def row_share(self) -> float:
        """What a row costs, as a part of what a token costs; a half until it was measured.

        A drafted token pays where it is likelier than this to be right: it then spares what
        tokens cost at the pace they come, which drafts have made quicker already.
        """
        if self._plain is None or self._drafted is None or self._drawn is None:
            return 0.5
        (few, fast_s), (many, slow_s), (drawn, took_s) = self._plain, self._drafted, self._drawn
        if many <= few or took_s <= 0:
            return 0.5
        row_s = max(slow_s - fast_s, 0.0) / (many - few)
        return row_s * drawn / took_s


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


def _average(old: tuple[float, float] | None, new: tuple[float, float]) -> tuple[float, float]:
    """The moving average of pairs; those that lie on a line keep to it."""
    if old is None:
        return new
    return (
        old[0] + _SHARE_OF_NEWS * (new[0] - old[0]),
        old[1] + _SHARE_OF_NEWS * (new[1] - old[1]),
    )
