"""Slots, each with room for one sequence, and the choice of the idle one to give away."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto

import msgspec
import numpy as np

from afterword.engine.batching.sequence import Sequence, TokenIds


class SlotState(Enum):
    """EMPTY has no KV; RESIDENT is idle and its KV is kept; ACTIVE has a running sequence."""

    EMPTY = auto()
    RESIDENT = auto()
    ACTIVE = auto()


class Holder:
    """Something that holds the KV of a prefix of ``computed`` tokens.

    ``sequence`` is the one that computes in it, if any. ``index`` is its number at the runner.
    ``scope`` is the cache scope of its tokens.
    """

    __slots__ = ("computed", "index", "last_used", "scope", "sequence")

    def __init__(self, index: int) -> None:
        self.index = index
        self.computed = 0
        self.sequence: Sequence | None = None
        self.last_used = 0
        self.scope = ""

    @property
    def will_compute(self) -> int:
        """How many tokens it will hold once the prompt of its sequence is computed."""
        return self.computed if self.sequence is None else max(self.computed, self.sequence.wanted)


class Source(msgspec.Struct, frozen=True):
    """A holder, and how many of its tokens a prompt can reuse."""

    holder: Holder
    tokens: int


class Checkpoint(Holder):
    """A copy of a slot's whole state after a prefix; it never changes."""

    __slots__ = ("size_bytes",)

    def __init__(self, index: int, computed: int, size_bytes: int) -> None:
        super().__init__(index)
        self.computed = computed
        self.size_bytes = size_bytes


class Slot(Holder):
    """KV memory for one sequence.

    Invariant: the KV of ``tokens[:computed]`` is in memory. ``awaited`` counts the waiting
    sequences that will continue its prefix.
    """

    __slots__ = ("awaited", "tokens")

    def __init__(self, index: int, context: int) -> None:
        super().__init__(index)
        self.tokens: TokenIds = np.zeros(context, np.int32)
        self.awaited = 0

    @property
    def state(self) -> SlotState:
        """Whether the slot is empty, resident or active."""
        if self.sequence is not None:
            return SlotState.ACTIVE
        return SlotState.RESIDENT if self.computed else SlotState.EMPTY


class Slots:
    """All slots of an engine, and the choice among the idle ones."""

    def __init__(self, count: int, context: int) -> None:
        self._slots = [Slot(i, context) for i in range(count)]
        self._clock = 0

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, index: int) -> Slot:
        return self._slots[index]

    def idle(self) -> list[Slot]:
        """Returns the slots without a sequence, ordered by index."""
        return [slot for slot in self._slots if slot.sequence is None]

    def touch(self, holder: Holder) -> None:
        """Mark a holder as used most recently, for the order of eviction."""
        self._clock += 1
        holder.last_used = self._clock

    def victim(self, source: Source | None, *, over_awaited: bool) -> Slot | None:
        """Returns the idle slot for a sequence that continues ``source``; None if none is free.

        It is the source itself if little of it is lost or no other slot is free; else an empty
        slot; else the least recently used. An awaited slot is given only if ``over_awaited``.
        """
        idle = self.idle()
        own = source.holder if source is not None and source.holder in idle else None
        free = [slot for slot in idle if slot is not own and not slot.awaited]
        if isinstance(own, Slot) and source is not None:
            lost = own.computed - source.tokens
            if not free or lost <= source.tokens // 4:
                return own
        if not free and over_awaited:
            free = idle
        return min(
            free, key=lambda slot: (slot.computed > 0, slot.last_used, slot.index), default=None
        )
