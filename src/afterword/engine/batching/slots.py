"""Slots and what they keep: the prefix cache is the tokens that slots have computed.

It knows nothing of memory: a slot's index and a number of tokens are all it says of KV.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum, auto

import msgspec
import numpy as np

from afterword.engine.batching.scores import Scores
from afterword.engine.batching.sequence import Prompt, Sequence, TokenIds


class SlotState(Enum):
    """EMPTY has no KV; RESIDENT is idle and its KV is kept; ACTIVE has a running sequence."""

    EMPTY = auto()
    RESIDENT = auto()
    ACTIVE = auto()


class Slot:
    """Engine resource of one sequence.

    Invariant: KV of ``tokens[:computed]`` is in memory, and ``scores`` knows positions of these
    tokens only, plus the one after them.
    """

    __slots__ = ("computed", "index", "last_used", "scores", "sequence", "tokens")

    def __init__(self, index: int, context: int) -> None:
        self.index = index
        self.tokens: TokenIds = np.zeros(context, np.int32)
        self.computed = 0
        self.scores = Scores()
        self.sequence: Sequence | None = None
        self.last_used = 0

    @property
    def state(self) -> SlotState:
        """What the slot is used for."""
        if self.sequence is not None:
            return SlotState.ACTIVE
        return SlotState.RESIDENT if self.computed else SlotState.EMPTY

    def reusable(self, prompt: Prompt, *, computed: int) -> int:
        """How many of a prompt's tokens need not be computed if this slot has ``computed``.

        At most all but the last where a row to draw from is needed. A prompt to be scored needs
        the scores of what is not computed again, the branching token's own excluded.
        """
        length = len(prompt.ids)
        if prompt.job.prompt_logprobs is None:
            return min(common_prefix(prompt.ids, self.tokens[:computed]), length - 1)
        if self.scores.k < prompt.job.prompt_logprobs:
            return 0
        known = self.scores.known
        if self.sequence is not None and self.sequence.prompt.scored and computed > self.computed:
            # What this slot will have scored once it has computed that far.
            known = max(known, computed - 1)
        shared = common_prefix(prompt.ids, self.tokens[: max(computed, known + 1)])
        return max(0, min(shared - 1, known, computed, length - 1))


class Source(msgspec.Struct, frozen=True):
    """A slot and how many of its tokens serve a prompt."""

    slot: Slot
    tokens: int


class Slots:
    """All slots of an engine, and the choice among them."""

    def __init__(self, count: int, context: int, *, least_shared_tokens: int) -> None:
        self._slots = [Slot(i, context) for i in range(count)]
        self._least_shared_tokens = least_shared_tokens
        self._clock = 0

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def idle(self) -> list[Slot]:
        """Slots without a sequence, by index."""
        return [slot for slot in self._slots if slot.sequence is None]

    def touch(self, slot: Slot) -> None:
        """Mark as used just now, for the order of eviction."""
        self._clock += 1
        slot.last_used = self._clock

    def best(self, prompt: Prompt, computed: Callable[[Slot], int]) -> Source | None:
        """The slot that saves most of ``prompt``, the lowest index on a tie; None below a limit."""
        best: Source | None = None
        for slot in self._slots:
            tokens = slot.reusable(prompt, computed=computed(slot))
            if tokens >= self._least_shared_tokens and (best is None or tokens > best.tokens):
                best = Source(slot, tokens)
        return best

    def victim(self, source: Source | None) -> Slot:
        """The idle slot to give to a sequence that continues ``source``.

        The source itself if little of it is lost, or if it is the only idle one; else an empty
        one; else the least recently used. The caller knows that one is idle.
        """
        idle = self.idle()
        if source is not None and source.slot.sequence is None:
            lost = source.slot.computed - source.tokens
            if lost <= source.tokens // 4 or len(idle) == 1:
                return source.slot
            idle.remove(source.slot)
        return min(idle, key=lambda slot: (slot.computed > 0, slot.last_used, slot.index))


def common_prefix(a: TokenIds, b: TokenIds) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    if n == 0 or a[0] != b[0]:
        return 0
    different = a[:n] != b[:n]
    first = int(different.argmax())
    return first if different[first] else n
