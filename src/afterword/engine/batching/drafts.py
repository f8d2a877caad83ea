"""Prompt lookup: drafts copy what followed a similar place earlier in the text.

A step verifies a draft. Each row is sampled from as if there were no draft, and the draft only
decides whether the rows after it are valid, so answers are identical with and without drafts.
This is why drafts may depend on measured times.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np

from afterword.engine.arrays import TokenIds
from afterword.engine.batching.sequence import CLASSES, Draft, Sequence
from afterword.engine.batching.slots import Slot

MOST_SEQUENCES = 4
"""With more sequences in a batch, extra rows cost more than they save."""
_MOST_TOKENS = 16
_CANDIDATES = 64
_WINDOW = 32
_NEAR = 0.8 ** np.arange(_WINDOW)
_NEAR /= _NEAR.sum()
"""Weight of a matching token, by its distance from the end; the weights sum to 1."""
_SHARE_OF_NEWS = 0.15
"""Weight of the latest step in the moving averages of ``StepCost``."""
_MOST_ALIKE = 128
"""After so many steps in a row with drafts, or without, the time of the others is measured again:
it may have been long because something else ran on the machine."""
_SHARE_OF_A_DRAFT = 0.05
"""Weight of the latest drafted token in the moving averages of ``Draft``."""


class StepCost:
    """Marginal cost of one more row in a decode step, relative to the cost of a generated token.

    The cost of a row follows from the row counts and times of steps with and without drafts, the
    cost of a token from the time of all steps and the tokens that they gave.
    """

    def __init__(self) -> None:
        self._plain: tuple[float, float] | None = None
        self._drafted: tuple[float, float] | None = None
        self._drawn: tuple[float, float] | None = None
        self._alike = 0
        self._last_drafted = False

    def observe(self, *, rows: int, drafted: int, drawn: int, took_s: float) -> None:
        """Learn from a step without prefill.

        ``rows`` counts its rows, ``drafted`` those of drafts, ``drawn`` the tokens that it gave.
        """
        self._drawn = _average(self._drawn, (drawn, took_s))
        self._alike = self._alike + 1 if bool(drafted) == self._last_drafted else 1
        self._last_drafted = bool(drafted)
        if drafted:
            self._drafted = _average(self._drafted, (rows, took_s))
            self._plain = None if self._alike == _MOST_ALIKE else self._plain
        else:
            self._plain = _average(self._plain, (rows, took_s))
            self._drafted = None if self._alike == _MOST_ALIKE else self._drafted

    @property
    def row_share(self) -> float:
        """The cost of a row divided by the cost of a token.

        Drafting a token pays if its probability of being right is larger than this. The cost of a
        token is the current one, which drafts may have lowered already. Until steps with drafts
        are measured it is 0.5; until steps without are, it is 1, which drafts nothing.
        """
        if self._drafted is None or self._drawn is None:
            return 0.5
        if self._plain is None:
            return 1.0
        (few, fast_s), (many, slow_s), (drawn, took_s) = self._plain, self._drafted, self._drawn
        if many <= few or took_s <= 0:
            return 0.5
        row_s = max(slow_s - fast_s, 0.0) / (many - few)
        return row_s * drawn / took_s


def make_drafts(running: SequenceOf[tuple[Slot, Sequence]], row_share: float) -> int:
    """Set the draft of each sequence.

    Returns how many tokens of every draft are worth computing.

    The number is the same for all, so that a runner can compute them together. If it is 0, drafts
    are still compared with the tokens that follow, which shows when they begin to pay.
    """
    drafted = _MOST_TOKENS
    for slot, sequence in running:
        left = sequence.limit - sequence.length - 1
        found, similarity = look_up(slot.tokens[: sequence.length], _MOST_TOKENS)
        if sequence.grammar is not None:
            found = found[: sequence.grammar.valid(found.tolist())]
        draft = sequence.draft
        draft.tokens, draft.similarity = found.tolist(), min(int(similarity * CLASSES), CLASSES - 1)
        drafted = min(drafted, left, len(found), _paying_length(draft, row_share))
    return max(drafted, 0)


def look_up(tokens: TokenIds, most: int) -> tuple[TokenIds, float]:
    """Find the earlier occurrence of the last token whose context is most similar.

    The similarity of two places is the weighted share of equal tokens at equal distances before
    them; near tokens weigh most. So a few replaced tokens do not hide a match. Of equally similar
    places the latest is taken.

    Returns the ``most`` tokens that followed the place, repeated if the end comes first, and the
    similarity from 0 to 1; no tokens and 0.0 if the last token did not occur before.
    """
    end = len(tokens)
    if end < 2:
        return tokens[:0], 0.0
    places = np.flatnonzero(tokens[: end - 1] == tokens[-1])[-_CANDIDATES:, None]
    if not len(places):
        return tokens[:0], 0.0
    back = np.arange(min(_WINDOW, end - 1))
    before = places - back
    agree = (tokens[np.maximum(before, 0)] == tokens[end - 1 - back]) & (before >= 0)
    similarity = agree @ _NEAR[: len(back)]
    best = len(similarity) - 1 - int(similarity[::-1].argmax())
    return np.resize(tokens[int(places[best, 0]) + 1 :], most), float(similarity[best])


def learn(draft: Draft, drawn: SequenceOf[int]) -> None:
    """Update the odds of a draft with the tokens that were drawn, up to the first difference."""
    for number, (drafted, token) in enumerate(zip(draft.tokens, drawn, strict=False)):
        right = drafted == token
        if number:
            draft.next += _SHARE_OF_A_DRAFT * (right - draft.next)
        else:
            draft.first[draft.similarity] += _SHARE_OF_A_DRAFT * (
                right - draft.first[draft.similarity]
            )
        if not right:
            break
    draft.tokens = []


def _paying_length(draft: Draft, row_share: float) -> int:
    """Returns the largest length whose last token is right with more than ``row_share``."""
    probability, length = draft.first[draft.similarity], 0
    while length < _MOST_TOKENS and probability > row_share:
        probability *= draft.next
        length += 1
    return length


def _average(old: tuple[float, float] | None, new: tuple[float, float]) -> tuple[float, float]:
    """Returns the moving average of pairs; averages of points on a line stay on that line."""
    if old is None:
        return new
    return (
        old[0] + _SHARE_OF_NEWS * (new[0] - old[0]),
        old[1] + _SHARE_OF_NEWS * (new[1] - old[1]),
    )
