"""Who may take blocks of KV memory: running sequences first, idle slots what they leave.

A sequence is promised some blocks more than it begins with, and asks for further ones when it needs
them. If there are none, the scheduler preempts a sequence. Idle slots keep their blocks until they
are needed. The least recently used slot goes first, from its end: the beginning of its tokens,
which others may share, stays longest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from afterword.engine.batching.blocks import BlockTables
from afterword.engine.batching.runner import Fork, Restore, Trim
from afterword.engine.batching.slots import Holder, Slot, Slots, Source

_FEW_CONTEXTS = 4
"""With room for fewer contexts, none is kept for requests that do not run yet."""


class BlockBudget:
    """Counts the blocks of slots, and evicts idle slots if blocks are missing.

    ``cut_off(slot, tokens)`` trims an idle slot. Invariant: the blocks that active slots name, and
    those that they were promised, are together at most all blocks.
    """

    def __init__(
        self,
        tables: BlockTables,
        slots: Slots,
        context_tokens: int,
        cut_off: Callable[[Slot, int], None],
    ) -> None:
        self._tables = tables
        self._slots = slots
        self._cut_off = cut_off
        most = tables.blocks_for(context_tokens)
        self._kept = most if tables.blocks >= _FEW_CONTEXTS * most else 0
        self._promised = 0
        # By block, how many active slots name it.
        self._busy: Counter[int] = Counter()

    @property
    def used_tokens(self) -> int:
        """Tokens that all blocks with a name have room for."""
        return (self._tables.blocks - self._tables.free) * self._tables.block_tokens

    def admits(self, tokens: int, source: Source | None, *, more: bool) -> bool:
        """Whether a sequence that continues ``source`` can be promised room for ``tokens``.

        If it is one ``more`` of a request, the blocks of one whole context are left over.
        """
        wanted = self._tables.blocks_for(tokens)
        if source is not None:
            shared = self._tables.table(source.holder.index)[
                : source.tokens // self._tables.block_tokens
            ]
            wanted -= sum(block in self._busy for block in shared)
        return self._has(wanted, more=more)

    def make_way(self, slot: Slot, source: Source | None) -> Slot:
        """Free the block that the beginning of a sequence may need, for a part of a block.

        Returns the slot for it: ``slot``, or the source itself if only the source has blocks left.
        """
        if source is None or not source.tokens % self._tables.block_tokens:
            return slot
        holder = source.holder
        last = self._tables.table(holder.index)[source.tokens // self._tables.block_tokens]
        while not self._tables.free:
            if holder is slot and not self._tables.is_shared(last):
                return slot
            if not self._evict(1, but=holder):
                if not isinstance(holder, Slot) or holder.sequence is not None:
                    raise AssertionError("a sequence was admitted without a block")
                return holder
        return slot

    def promise(self, slot: Slot, tokens: int) -> None:
        """Promise a slot that has just become active room for ``tokens``, which were admitted."""
        self._busy.update(self._tables.table(slot.index))
        self._give(slot, tokens)

    def extend(self, slot: Slot, tokens: int, *, more: bool) -> bool:
        """Promise an active slot room for ``tokens``; False if there are too few blocks.

        If its sequence is one ``more`` of a request, the blocks of one whole context are left over.
        """
        return self.extend_all([(slot, tokens)], more=more)

    def extend_all(self, wanted: Iterable[tuple[Slot, int]], *, more: bool) -> bool:
        """Promise each slot room for its tokens, or none of them. See ``extend``."""
        size = self._tables.block_tokens
        short = [(slot, tokens) for slot, tokens in wanted if tokens > slot.room]
        missing = sum(self._tables.blocks_for(tokens) - slot.room // size for slot, tokens in short)
        if not self._has(missing, more=more):
            return False
        for slot, tokens in short:
            self._give(slot, tokens)
        return True

    def release(self, slot: Slot) -> None:
        """Take the promise back; the slot keeps the blocks that it has."""
        self._unname(self._tables.table(slot.index))
        self._promised -= slot.promised
        slot.promised = 0
        slot.room = 0

    def grow(self, slot: Slot, tokens: int) -> None:
        """Give an active slot the blocks of so many tokens."""
        had = len(self._tables.table(slot.index))
        missing = self._tables.blocks_for(tokens) - had
        if missing <= 0:
            return
        while self._tables.free < missing:
            if not self._evict(missing - self._tables.free):
                raise AssertionError("promised blocks are missing")
        self._tables.grow(slot.index, tokens)
        self._busy.update(self._tables.table(slot.index)[had:])
        slot.promised -= missing
        self._promised -= missing

    def carry_out(self, instruction: Fork | Trim | Restore) -> None:
        """Count what an instruction does to the blocks of its slot."""
        match instruction:
            case Fork(source, destination, tokens):
                self._tables.fork(source, destination, tokens)
            case Trim(index, tokens):
                self._trim(self._slots[index], tokens)
            case Restore():
                raise AssertionError("blocks have no checkpoints")

    def _has(self, blocks: int, *, more: bool) -> bool:
        """Whether so many blocks can be promised; with ``more``, those of a context stay."""
        kept = self._kept if more else 0
        return blocks + kept <= self._tables.blocks - len(self._busy) - self._promised

    def _give(self, slot: Slot, tokens: int) -> None:
        blocks = self._tables.blocks_for(tokens)
        promised = blocks - len(self._tables.table(slot.index))
        self._promised += promised - slot.promised
        slot.promised = promised
        slot.room = blocks * self._tables.block_tokens

    def _trim(self, slot: Slot, tokens: int) -> None:
        if slot.sequence is None:
            self._tables.trim(slot.index, tokens)
            return
        before = list(self._tables.table(slot.index))
        self._tables.trim(slot.index, tokens)
        after = self._tables.table(slot.index)
        self._busy.update(after)
        self._unname(before)
        slot.promised += len(before) - len(after)
        self._promised += len(before) - len(after)

    def _unname(self, blocks: list[int]) -> None:
        for block in blocks:
            self._busy[block] -= 1
            if not self._busy[block]:
                del self._busy[block]

    def _evict(self, blocks: int, *, but: Holder | None = None) -> bool:
        """Cut some blocks off the least recently used idle slot; False if there is none.

        They may be shared with others, and then none becomes free.
        """
        for over_awaited in (False, True):
            slot = self._slots.first_resident(but=but, over_awaited=over_awaited)
            if slot is not None:
                kept = len(self._tables.table(slot.index)) - blocks
                self._cut_off(slot, max(kept, 0) * self._tables.block_tokens)
                return True
        return False

    def check(self) -> None:
        """Raise ``AssertionError`` if an invariant does not hold."""
        self._tables.check()
        busy: Counter[int] = Counter()
        for slot, _ in self._slots.running:
            busy.update(self._tables.table(slot.index))
            blocks = len(self._tables.table(slot.index)) + slot.promised
            if slot.promised < 0 or slot.room != blocks * self._tables.block_tokens:
                raise AssertionError(f"slot {slot.index} was promised another number of blocks")
        promised = sum(slot.promised for slot, _ in self._slots.running)
        if (busy, promised) != (self._busy, self._promised):
            raise AssertionError("blocks of active slots are counted wrongly")
        if len(busy) + self._promised > self._tables.blocks:
            raise AssertionError("more blocks are promised than there are")
