"""KV memory as the scheduler sees it: slots, who shares whose prefix, what the runner is told."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

import msgspec
import numpy as np

from afterword.engine.batching.checkpoints import Checkpoints
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
from afterword.engine.batching.sequence import Prompt, Sequence, TokenIds
from afterword.engine.batching.slots import Checkpoint, Holder, Slot, Slots, Source

_WORTH_WAITING_TOKENS = 6
"""A prefix that another slot is about to compute is waited for if it saves more than this."""


class Wait(msgspec.Struct, frozen=True):
    """A sequence waits until ``slot`` has computed ``tokens`` tokens for ``owner``."""

    slot: Slot
    owner: Sequence
    tokens: int

    def over(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return self.slot.sequence is not self.owner or self.slot.computed >= self.tokens


class Memory:
    """Slots, checkpoints and the prefix cache in step with each other and with the runner.

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
        self._checkpoints = Checkpoints(
            first=len(slots),
            size_bytes=runner.checkpoint_bytes,
            budget_bytes=checkpoint_budget_bytes,
        )
        self._nothing: TokenIds = np.empty(0, np.int32)
        self._instructions: list[KVInstruction] = []

    @property
    def checkpoint_bytes(self) -> int:
        """Memory of the states that are kept."""
        return self._checkpoints.held_bytes

    def take_instructions(self) -> SequenceOf[KVInstruction]:
        """What the runner has to do before the next batch."""
        instructions, self._instructions = self._instructions, []
        return instructions

    def source(self, prompt: Prompt, match: Match) -> Source | None:
        """Whose KV saves most of a prompt now; its scores take what is known.

        ``match`` is how far the cache goes along with the prompt.
        """
        if self.sharing == "none":
            return None
        self.cache.touch(match)
        if prompt.scores is not None:
            self.cache.read(match, prompt.scores)
        most = prompt.first_row
        whole = self.sharing == "checkpoints"

        def usable(holder: Holder, depth: int) -> int:
            room = min(depth, most)
            return _whole(holder, room) if whole else min(holder.computed, room)

        found = self.cache.best(match, usable)
        if found is None or found.tokens < self._least_shared_tokens:
            return None
        return found

    def worth_waiting_for(self, prompt: Prompt, match: Match, source: Source | None) -> Wait | None:
        """The running slot that will soon save more of a prompt than ``source`` does.

        Where whole states are shared, the owner is to stop there for one to be kept. A prompt to
        be scored then follows the owner's: it is told what is found at the position where they
        part.
        """
        if self.sharing == "none":
            return None
        coming = self.cache.best(match, lambda holder, depth: min(holder.will_compute, depth))
        if coming is None or not isinstance(coming.holder, Slot):
            return None
        slot, owner = coming.holder, coming.holder.sequence
        tokens = min(coming.tokens, len(prompt.ids) - 1)
        if owner is None or tokens <= slot.computed or tokens < self._least_shared_tokens:
            return None
        if prompt.scores is not None:
            parts_at = min(common_prefix(prompt.ids, owner.prompt.ids), len(prompt.ids) - 1)
            scores = owner.prompt.scores
            if scores is None or scores.k < prompt.scores.k or scores.known > parts_at:
                return None
        saved = 0 if source is None else source.tokens
        if tokens < saved + _WORTH_WAITING_TOKENS:
            return None
        if prompt.scores is not None:
            owner.prompt.followers.setdefault(parts_at, []).append(prompt)
        if self.sharing == "checkpoints":
            self._cut(owner, tokens)
        return Wait(slot, owner, tokens)

    def claim(self, sequence: Sequence, slot: Slot, source: Source | None, match: Match) -> int:
        """Give an idle slot to a sequence, with the KV of ``source``; how many tokens it has."""
        reused = source.tokens if source is not None else 0
        if source is not None and source.holder is slot:
            if reused < slot.computed:
                self._instructions.append(Trim(slot.index, reused))
        else:
            if slot.computed:
                self._instructions.append(Trim(slot.index, 0))
            if source is not None:
                # The source is not touched: what it gave lives on in the new slot, and those that
                # begin alike come one after the other.
                self._instructions.append(_copy(source, slot))
                self.slots.touch(source.holder)
        ids = sequence.prompt.ids
        slot.computed = reused
        slot.tokens[: len(ids)] = ids
        slot.sequence, sequence.slot = sequence, slot.index
        if self.sharing == "checkpoints":
            self._cut_for_others(sequence, match.tokens, reused)
        self.cache.hold(slot, ids)
        self.slots.touch(slot)
        return reused

    def keep_states(self) -> None:
        """Keep a copy of every state that is just where one was asked for."""
        for slot in self.slots:
            cuts = slot.sequence.cuts if slot.sequence is not None else []
            if not cuts or cuts[0] > slot.computed:
                continue
            wanted = slot.computed in cuts
            del cuts[: sum(cut <= slot.computed for cut in cuts)]
            if wanted and not self._has_checkpoint(slot):
                self._keep_state(slot)

    def trim(self, slot: Slot, tokens: int) -> None:
        """What was computed in a slot beyond ``tokens`` does not hold."""
        if self.sharing != "cells":
            self.forget(slot)
            return
        self._instructions.append(Trim(slot.index, tokens))
        slot.computed = tokens

    def leave(self, sequence: Sequence) -> None:
        """Take a sequence out of its slot, which keeps what it has computed."""
        if sequence.slot is None:
            return
        slot = self.slots[sequence.slot]
        slot.sequence = sequence.slot = None
        self.slots.touch(slot)
        self.cache.hold(slot, slot.tokens[: slot.computed])

    def forget(self, slot: Slot) -> None:
        """The KV of a slot is lost. A sequence that was only forked into it computes it all."""
        self._instructions.append(Trim(slot.index, 0))
        slot.computed = 0
        if slot.sequence is None:
            self.cache.hold(slot, slot.tokens[:0])
        else:
            slot.sequence.prompt.cached_tokens = 0

    def forget_failed(self, slots: Iterable[int], instructions: Iterable[KVInstruction]) -> None:
        """Forget what a failed step may have left in these slots or was to do by instructions."""
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
        for lost in self.slots:
            if lost.index in touched:
                self.forget(lost)

    def start_afresh(self) -> None:
        """Have every slot as it was at the start; none may be in use."""
        for slot in self.slots:
            if slot.computed:
                self.forget(slot)
            slot.last_used = 0

    def check(self) -> None:
        """Raise ``AssertionError`` if an invariant does not hold."""
        self.cache.check()
        self._checkpoints.check()
        for holder in (*self.slots, *self._checkpoints):
            if self.cache.held_tokens(holder) < holder.computed and holder.sequence is None:
                raise AssertionError(f"the cache does not know what {holder.index} holds")

    def _cut(self, owner: Sequence, tokens: int) -> None:
        if tokens not in owner.cuts:
            insort(owner.cuts, tokens)

    def _cut_for_others(self, sequence: Sequence, matched: int, reused: int) -> None:
        """Have the state kept where a prompt leaves one that was there before.

        Whoever began like this twice will do so again. The row before the parting is needed by
        those who score what follows.
        """
        prompt = sequence.prompt
        tokens = min(matched, len(prompt.ids) - 1) - (prompt.scores is not None)
        if tokens >= reused + self._least_shared_tokens:
            self._cut(sequence, tokens)

    def _has_checkpoint(self, slot: Slot) -> bool:
        """Whether the state after a slot's tokens is kept already; it counts as used then."""
        match = self.cache.match(slot.tokens[: slot.computed])
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
        self.cache.hold(kept, slot.tokens[: slot.computed])
        self.slots.touch(kept)

    def _lose(self, checkpoint: Checkpoint) -> None:
        self.cache.hold(checkpoint, self._nothing)
        self._instructions.append(Drop(checkpoint.index))


def _whole(holder: Holder, room: int) -> int:
    """How many tokens a holder has, if they are all of use."""
    return holder.computed if holder.computed <= room else 0


def _copy(source: Source, slot: Slot) -> KVInstruction:
    if isinstance(source.holder, Checkpoint):
        return Restore(source.holder.index, slot.index, source.tokens)
    return Fork(source.holder.index, slot.index, source.tokens)
