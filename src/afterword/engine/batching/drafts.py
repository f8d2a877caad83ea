"""Prompt lookup: what followed a place like this one is drafted, and verified in one step.

Lossless: each row is drawn from as if it were alone, and a draft only decides whether the rows
after it hold. So it may depend on time, where nothing else does.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np

from afterword.engine.batching.sequence import CLASSES, Draft, Sequence, TokenIds
from afterword.engine.batching.slots import Slot

MOST_SEQUENCES = 4
"""With more sequences at once, rows cost more than what they could save."""
_MOST_TOKENS = 16
_CANDIDATES = 64
_WINDOW = 32
_NEAR = 0.8 ** np.arange(_WINDOW)
_NEAR /= _NEAR.sum()
"""How much it counts that tokens agree, by their distance from the end."""
_SHARE_OF_NEWS = 0.15
"""How much of what was measured last counts in the average."""
_SHARE_OF_A_DRAFT = 0.05


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


def make_drafts(running: SequenceOf[tuple[Slot, Sequence]], row_share: float) -> int:
    """Draft how the sequence of each slot goes on.

    Returns how many tokens of each guess are worth computing.

    The number is the same for all, so that a runner computes them side by side. Where it is 0 the
    guesses are still compared with the tokens that come: that shows when drafts begin to pay.
    """
    worth = _MOST_TOKENS
    for slot, sequence in running:
        left = sequence.limit - sequence.length - 1
        found, likeness = look_up(slot.tokens[: sequence.length], _MOST_TOKENS)
        draft = sequence.draft
        draft.tokens, draft.similarity = found.tolist(), min(int(likeness * CLASSES), CLASSES - 1)
        worth = min(worth, left, len(found), _worth(draft, row_share))
    return max(worth, 0)


def look_up(tokens: TokenIds, most: int) -> tuple[TokenIds, float]:
    """What followed the most alike of the places where the last token stood before.

    How alike two places are is the weighted share of tokens before them that agree one by one, the
    nearest counting most: where a few were replaced, the rest still agrees. Of equal places the
    latest is taken. ``most`` tokens and the likeness in 0 to 1, or no tokens: where the end comes
    first, what followed is taken to repeat itself.
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
    likeness = agree @ _NEAR[: len(back)]
    best = len(likeness) - 1 - int(likeness[::-1].argmax())
    return np.resize(tokens[int(places[best, 0]) + 1 :], most), float(likeness[best])


def learn(draft: Draft, drawn: SequenceOf[int]) -> None:
    """Compare a guess with what was drawn, up to where they part."""
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


def _worth(draft: Draft, row_share: float) -> int:
    """The longest draft whose last token is likelier than ``row_share`` to be right."""
    likely, worth = draft.first[draft.similarity], 0
    while worth < _MOST_TOKENS and likely > row_share:
        likely *= draft.next
        worth += 1
    return worth


def _average(old: tuple[float, float] | None, new: tuple[float, float]) -> tuple[float, float]:
    """The moving average of pairs; those that lie on a line keep to it."""
    if old is None:
        return new
    return (
        old[0] + _SHARE_OF_NEWS * (new[0] - old[0]),
        old[1] + _SHARE_OF_NEWS * (new[1] - old[1]),
    )
