"""KV memory as the scheduler sees it: slots, shared prefixes, instructions for the runner."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

import msgspec
import numpy as np

from afterword.engine.arrays import NO_IDS
from afterword.engine.batching.block_budget import BlockBudget
from afterword.engine.batching.blocks import BlockTables
from afterword.engine.batching.checkpoints import Checkpoints
from afterword.engine.batching.evicted import Evicted
from afterword.engine.batching.prefix_cache import Match, PrefixCache, common_prefix
from afterword.engine.batching.runner import (
    Drop,
    Fork,
    KVInstruction,
    ModelRunner,
    Restore,
    Save,
    Trim,
)
from afterword.engine.batching.sequence import Sequence
from afterword.engine.batching.slots import Checkpoint, Holder, Slot, Slots, Source
from afterword.engine.batching.step import Span

_REMEMBERED = 4
"""Evicted blocks that are remembered, for each block that there is."""
_AHEAD_BLOCKS = 4
"""Blocks that a sequence is promised for the tokens that follow its prompt."""
_WORTH_WAITING_TOKENS = 6
"""A sequence waits for a prefix that another slot is computing if it saves at least this much."""


class Wait(msgspec.Struct, frozen=True):
    """A sequence waits until ``slot`` has computed ``tokens`` tokens of ``owner``."""

    slot: Slot
    owner: Sequence
    tokens: int

    def over(self) -> bool:
        """Whether the tokens are computed, or the owner has left the slot."""
        return self.slot.sequence is not self.owner or self.slot.computed >= self.tokens


class Memory:
    """Keeps slots, checkpoints and the prefix cache consistent with each other and the runner.

    Every change of what they hold is an instruction to the runner, in order.
    """

    def __init__(
        self,
        runner: ModelRunner,
        slots: Slots,
        *,
        score_budget_bytes: int,
        checkpoint_budget_bytes: int,
    ) -> None:
        self.slots = slots
        self.cache = PrefixCache(score_budget_bytes)
        self.sharing = runner.sharing
        self._least_shared_tokens = runner.least_shared_tokens
        self._block_tokens = runner.block_tokens
        self._blocks: BlockBudget | None = None
        if runner.blocks:
            tables = BlockTables(runner.blocks, runner.block_tokens)
            self._evicted = Evicted(runner.block_tokens, _REMEMBERED * runner.blocks)
            self._blocks = BlockBudget(tables, slots, runner.context_tokens, self._cut_off)
        self._checkpoints = Checkpoints(
            first=slots.count,
            size_bytes=runner.checkpoint_bytes,
            budget_bytes=checkpoint_budget_bytes,
        )
        self._instructions: list[KVInstruction] = []

    @property
    def used_tokens(self) -> int:
        """How many tokens have KV in memory; whole blocks count."""
        if self._blocks is not None:
            return self._blocks.used_tokens
        return sum(slot.computed for slot in self.slots)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of all checkpoints."""
        return self._checkpoints.held_bytes

    def take_instructions(self) -> SequenceOf[KVInstruction]:
        """Returns the instructions that the runner carries out before the next batch."""
        instructions, self._instructions = self._instructions, []
        return instructions

    def source(self, sequence: Sequence, match: Match) -> Source | None:
        """Returns the holder whose KV saves most of a sequence now; None if none saves anything.

        Also copies known scores into its prompt's. ``match`` is the match of its ids in the cache.
        """
        if self.sharing == "none":
            return None
        prompt = sequence.prompt
        self.cache.touch(match)
        if prompt.scores is not None and prompt.scores.shared:
            self.cache.read(match, prompt.scores)
        most = sequence.first_row
        whole = self.sharing == "checkpoints"

        def usable(holder: Holder, depth: int) -> int:
            room = min(depth, most)
            return _whole(holder, room) if whole else min(holder.computed, room)

        found = self.cache.best(match, usable)
        if found is None or found.tokens < self._least_shared_tokens:
            return None
        return found

    def worth_waiting_for(
        self, sequence: Sequence, match: Match, source: Source | None
    ) -> Wait | None:
        """Returns a wait for the running slot that will soon save more than ``source`` does.

        Returns None if there is no such slot. With checkpoints, the owner stops at that point to
        save one. A prompt to be scored becomes a follower of the owner's prompt, which passes on
        the row at the position where the two differ.
        """
        if self.sharing == "none" or sequence.generated:
            return None
        prompt = sequence.prompt
        coming = self.cache.best(match, lambda holder, depth: min(holder.will_compute, depth))
        if coming is None or not isinstance(coming.holder, Slot):
            return None
        slot, owner = coming.holder, coming.holder.sequence
        tokens = min(coming.tokens, len(prompt.ids) - 1)
        if owner is None or tokens <= slot.computed or tokens < self._least_shared_tokens:
            return None
        if prompt.scores is not None:
            branch = min(common_prefix(prompt.ids, owner.prompt.ids), len(prompt.ids) - 1)
            scores = owner.prompt.scores
            if scores is None or not scores.cover(prompt.scores) or scores.known > branch:
                return None
        saved = 0 if source is None else source.tokens
        if tokens < saved + _WORTH_WAITING_TOKENS:
            return None
        if prompt.scores is not None:
            owner.prompt.followers.setdefault(branch, []).append(prompt)
        if self.sharing == "checkpoints":
            self._cut(owner, tokens)
        return Wait(slot, owner, tokens)

    def admits(self, sequence: Sequence, source: Source | None) -> bool:
        """Whether there are blocks for the tokens of a sequence and for some that follow.

        Some are kept for requests of which no sequence runs yet.
        """
        if self._blocks is None:
            return True
        more = bool(sequence.request.running)
        return self._blocks.admits(self._promised(sequence), source, more=more)

    def extend(self, slot: Slot, sequence: Sequence, tokens: int) -> bool:
        """Make sure that a running sequence can have ``tokens``; False if there are no blocks."""
        if self._blocks is None:
            return True
        return self._blocks.extend(slot, tokens, more=len(sequence.request.running) > 1)

    def extend_all(self, running: SequenceOf[tuple[Slot, Sequence]], tokens: int) -> int:
        """Make sure that running sequences can have up to ``tokens`` more than are computed.

        Returns how many each of them can have, which may be fewer: those that it has room for.
        """
        if self._blocks is not None and any(s.room - s.computed < tokens for s, _ in running):
            more = any(len(sequence.request.running) > 1 for _, sequence in running)
            wanted = [(slot, slot.computed + tokens) for slot, _ in running]
            if not self._blocks.extend_all(wanted, more=more):
                return min(slot.room - slot.computed for slot, _ in running)
        return tokens

    def _promised(self, sequence: Sequence) -> int:
        """Returns the tokens that a sequence gets room for when it starts.

        A preempted one gets room to double what it generated, so it is not preempted often.
        Where its tokens could not be computed again to the same bits, it gets all that it may need.
        """
        if self.sharing != "cells":
            return sequence.limit
        ahead = max(_AHEAD_BLOCKS * self._block_tokens, sequence.generated)
        return min(sequence.limit, sequence.length + ahead)

    def claim(self, sequence: Sequence, slot: Slot, source: Source | None, match: Match) -> int:
        """Give an idle slot with the KV of ``source`` to a sequence; returns the reused tokens.

        The sequence gets another slot if blocks are so few that it has to continue its source.
        """
        reused = source.tokens if source is not None else 0
        if self._blocks is not None:
            slot = self._blocks.make_way(slot, source)
        if source is not None and source.holder is slot:
            if reused < slot.computed:
                self._instruct(Trim(slot.index, reused))
        else:
            if slot.computed:
                self._instruct(Trim(slot.index, 0))
            if source is not None:
                self._instruct(_copy(source, slot))
                self.slots.touch(source.holder)
        ids = sequence.ids
        slot.computed = reused
        slot.room = sequence.limit
        slot.tokens = np.empty(sequence.limit, np.int32)
        slot.tokens[: len(ids)] = ids
        self.slots.occupy(slot, sequence)
        if self._blocks is not None:
            self._blocks.promise(slot, self._promised(sequence))
            scope = sequence.prompt.job.cache_scope
            slot.gives_way = self._evicted.gives_way(ids, reused, scope)
        if self.sharing == "checkpoints":
            self._cut_for_others(sequence, match.tokens, reused)
        slot.scope = sequence.prompt.job.cache_scope
        self.cache.hold(slot, ids)
        return reused

    def make_room(self, spans: Iterable[Span]) -> None:
        """Give the slots of a step the blocks of the tokens that it computes."""
        if self._blocks is not None:
            for span in spans:
                self._blocks.grow(span.slot, span.start + span.tokens)

    def keep_states(self) -> None:
        """Save a checkpoint of every slot that has just reached one of its cuts."""
        if self.sharing != "checkpoints":
            return
        for slot, sequence in self.slots.running:
            cuts = sequence.cuts
            if not cuts or cuts[0] > slot.computed:
                continue
            wanted = slot.computed in cuts
            del cuts[: sum(cut <= slot.computed for cut in cuts)]
            if wanted and not self._has_checkpoint(slot):
                self._keep_state(slot)

    def trim(self, slot: Slot, tokens: int) -> None:
        """Drop what a slot has computed beyond ``tokens``; without cells, drop all of it."""
        if self.sharing != "cells":
            self.forget(slot)
            return
        self._instruct(Trim(slot.index, tokens))
        slot.computed = tokens

    def leave(self, sequence: Sequence) -> None:
        """Take a sequence out of its slot; the slot keeps its KV."""
        if sequence.slot is None:
            return
        slot = self.slots[sequence.slot]
        # A long limit may have left much room that nobody will use.
        slot.tokens = slot.tokens[: slot.computed].copy()
        if self._blocks is not None:
            self._blocks.release(slot)
        self.slots.vacate(slot, first_to_go=slot.gives_way)
        self.cache.hold(slot, slot.tokens)
        if self._blocks is not None and self.sharing == "none" and slot.computed:
            self.forget(slot)

    def forget(self, slot: Slot) -> None:
        """Drop the KV of a slot. A sequence in it then has no cached tokens."""
        self._instruct(Trim(slot.index, 0))
        slot.computed = 0
        if slot.sequence is None:
            self.cache.hold(slot, NO_IDS)
            self.slots.settle(slot)
        else:
            slot.sequence.prompt.cached_tokens = 0

    def forget_failed(self, slots: Iterable[int], instructions: Iterable[KVInstruction]) -> None:
        """Drop the KV that a failed step may have damaged, in its slots or by its instructions."""
        touched = set(slots)
        for instruction in instructions:
            match instruction:
                case Fork(_, slot, _) | Trim(slot, _) | Restore(_, slot, _):
                    touched.add(slot)
                case Save(_, number):
                    kept = self._checkpoints.pop(number)
                    if kept is not None:
                        self._lose(kept)
                case Drop(_):
                    self._instructions.append(instruction)
        for index in sorted(touched):
            self.forget(self.slots[index])

    def start_afresh(self) -> None:
        """Reset every slot to its state at the start; none may be in use."""
        for slot in self.slots:
            if slot.computed:
                self.forget(slot)
            slot.last_used = 0

    def check(self) -> None:
        """Raise ``AssertionError`` if an invariant does not hold."""
        self.cache.check()
        self._checkpoints.check()
        self.slots.check()
        if self._blocks is not None:
            self._blocks.check()
        for holder in (*self.slots, *self._checkpoints):
            if self.cache.held_tokens(holder) < holder.computed and holder.sequence is None:
                raise AssertionError(f"the cache does not know the tokens of {holder.index}")

    def _instruct(self, instruction: Fork | Trim | Restore) -> None:
        self._instructions.append(instruction)
        if self._blocks is not None:
            self._blocks.carry_out(instruction)

    def _cut_off(self, slot: Slot, tokens: int) -> None:
        """Keep the first ``tokens`` tokens of an idle slot, to get its last blocks back."""
        self._evicted.add(slot.tokens, tokens, slot.scope)
        if not tokens or self.sharing != "cells":
            self.forget(slot)
            return
        self._instruct(Trim(slot.index, tokens))
        slot.computed = tokens
        slot.tokens = slot.tokens[:tokens]
        self.cache.hold(slot, slot.tokens)

    def _cut(self, owner: Sequence, tokens: int) -> None:
        if tokens not in owner.cuts:
            insort(owner.cuts, tokens)

    def _cut_for_others(self, sequence: Sequence, matched: int, reused: int) -> None:
        """Ask for a checkpoint where a prompt branches off from an earlier one.

        A prefix that came twice will likely come again. A scored prompt stops one token earlier,
        because scoring the next token needs the row before the branch.
        """
        prompt = sequence.prompt
        tokens = min(matched, len(prompt.ids) - 1) - (prompt.scores is not None)
        if tokens >= reused + self._least_shared_tokens:
            self._cut(sequence, tokens)

    def _has_checkpoint(self, slot: Slot) -> bool:
        """Whether a checkpoint of a slot's tokens exists; if so, it is marked as used."""
        match = self.cache.match(slot.tokens[: slot.computed], slot.scope)
        found = self.cache.best(
            match,
            lambda holder, depth: _whole(holder, depth) if isinstance(holder, Checkpoint) else 0,
        )
        if found is None or found.tokens < slot.computed:
            return False
        self.slots.touch(found.holder)
        return True

    def _keep_state(self, slot: Slot) -> None:
        kept = self._checkpoints.add(slot.computed)
        if kept is None:
            return
        while (evicted := self._checkpoints.evict(but=kept)) is not None:
            self._lose(evicted)
        self._instructions.append(Save(slot.index, kept.index))
        kept.scope = slot.scope
        self.cache.hold(kept, slot.tokens[: slot.computed])
        self.slots.touch(kept)

    def _lose(self, checkpoint: Checkpoint) -> None:
        self.cache.hold(checkpoint, NO_IDS)
        self._instructions.append(Drop(checkpoint.index))


def _whole(holder: Holder, room: int) -> int:
    """Returns the tokens of a holder if all of them can be reused, else 0."""
    return holder.computed if holder.computed <= room else 0


def _copy(source: Source, slot: Slot) -> Fork | Restore:
    if isinstance(source.holder, Checkpoint):
        return Restore(source.holder.index, slot.index, source.tokens)
    return Fork(source.holder.index, slot.index, source.tokens)
