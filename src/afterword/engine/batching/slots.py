"""Slots, each with the KV of one sequence, and the choice of the idle one to give away."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum, auto
from heapq import heappop, heappush

import msgspec

from afterword.engine.arrays import NO_IDS
from afterword.engine.batching.sequence import Sequence


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
    sequences that will continue its prefix. ``promised`` counts the blocks that its sequence may
    still take; ``room`` counts the tokens that these and its own blocks have room for. If it
    ``gives_way``, it is the first to be evicted once its sequence has ended.
    """

    __slots__ = ("awaited", "gives_way", "promised", "room", "tokens")

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.tokens = NO_IDS
        self.awaited = 0
        self.promised = 0
        self.room = 0
        self.gives_way = False

    @property
    def state(self) -> SlotState:
        """Whether the slot is empty, resident or active."""
        if self.sequence is not None:
            return SlotState.ACTIVE
        return SlotState.RESIDENT if self.computed else SlotState.EMPTY


class Slots:
    """All slots of an engine, and the choice among the idle ones.

    At most ``most_active`` of ``count`` slots have a sequence. Slots are made when they are first
    given away. No call but ``check`` and iteration takes longer the more slots are idle.
    """

    def __init__(self, count: int, most_active: int | None = None) -> None:
        self.count = count
        self.most_active = count if most_active is None else most_active
        self._slots: list[Slot] = []
        self._active: dict[Slot, Sequence] = {}
        # The least recently used first.
        self._resident: OrderedDict[Slot, None] = OrderedDict()
        # A heap of indices, each at most once; some may be of slots that are not empty any more.
        self._empty: list[int] = []
        self._listed: set[int] = set()
        self._clock = 0
        self._oldest = 0

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __getitem__(self, index: int) -> Slot:
        return self._slots[index]

    @property
    def running(self) -> list[tuple[Slot, Sequence]]:
        """The active slots, each with its sequence, in the order in which they got it."""
        return list(self._active.items())

    @property
    def left(self) -> int:
        """How many more slots can get a sequence."""
        return self.most_active - len(self._active)

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of active and of resident slots."""
        return len(self._active), len(self._resident)

    def touch(self, holder: Holder) -> None:
        """Mark a holder as used most recently, for the order of eviction."""
        self._clock += 1
        holder.last_used = self._clock
        if isinstance(holder, Slot) and holder in self._resident:
            self._resident.move_to_end(holder)

    def occupy(self, slot: Slot, sequence: Sequence) -> None:
        """Put a sequence into an idle slot."""
        self._resident.pop(slot, None)
        self._active[slot] = sequence
        slot.sequence, sequence.slot = sequence, slot.index
        self.touch(slot)

    def vacate(self, slot: Slot, *, first_to_go: bool = False) -> None:
        """Take the sequence out of a slot, which keeps its KV; for long, or as the first to go."""
        sequence = self._active.pop(slot)
        slot.sequence = sequence.slot = None
        self.touch(slot)
        self.settle(slot)
        if first_to_go and slot in self._resident:
            self._oldest -= 1
            slot.last_used = self._oldest
            self._resident.move_to_end(slot, last=False)

    def settle(self, slot: Slot) -> None:
        """Record whether an idle slot is empty, after ``computed`` has changed."""
        if slot in self._active:
            return
        if slot.computed:
            self._resident.setdefault(slot, None)
            return
        self._resident.pop(slot, None)
        slot.tokens = NO_IDS
        if slot.index not in self._listed:
            self._listed.add(slot.index)
            heappush(self._empty, slot.index)

    def first_resident(self, *, but: Holder | None = None, over_awaited: bool) -> Slot | None:
        """Returns the least recently used resident slot, never ``but``; None if there is none.

        One that waiting sequences will continue is returned last, and only if ``over_awaited``.
        """
        awaited = None
        for slot in self._resident:
            if slot is but:
                continue
            if not slot.awaited:
                return slot
            awaited = awaited or slot
        return awaited if over_awaited else None

    def victim(self, source: Source | None, *, over_awaited: bool) -> Slot | None:
        """Returns the idle slot for a sequence that continues ``source``; None if none is free.

        It is the source itself if little of it is lost or no other slot is free; else an empty
        slot; else the least recently used. An awaited slot is given only if ``over_awaited``.
        """
        if self.left <= 0:
            return None
        own = source.holder if source is not None else None
        if not isinstance(own, Slot) or own.sequence is not None:
            own = None
        if own is not None and source is not None:
            lost = own.computed - source.tokens
            if lost <= source.tokens // 4:
                return own
        free = self._first_empty() or self.first_resident(but=own, over_awaited=False)
        if free is None:
            free = own
        if free is None and over_awaited:
            free = self.first_resident(over_awaited=True)
        return free

    def _first_empty(self) -> Slot | None:
        """Returns the empty slot of the lowest index; None if all that may be made have KV."""
        while self._empty and self._slots[self._empty[0]].state is not SlotState.EMPTY:
            self._listed.remove(heappop(self._empty))
        if not self._empty and len(self._slots) < self.count:
            slot = Slot(len(self._slots))
            self._slots.append(slot)
            self.settle(slot)
        return self._slots[self._empty[0]] if self._empty else None

    def check(self) -> None:
        """Raise ``AssertionError`` if a slot is not where its state says."""
        for slot in self._slots:
            placed = (slot in self._active, slot in self._resident)
            sound = placed == (slot.state is SlotState.ACTIVE, slot.state is SlotState.RESIDENT)
            if not sound or (not any(placed) and slot.index not in self._empty):
                raise AssertionError(f"slot {slot.index} is not where its state says")
        if self._listed != set(self._empty) or len(self._listed) < len(self._empty):
            raise AssertionError("empty slots are listed twice, or not as it is remembered")
        ages = [slot.last_used for slot in self._resident]
        if ages != sorted(ages):
            raise AssertionError("resident slots are not in the order of their use")
