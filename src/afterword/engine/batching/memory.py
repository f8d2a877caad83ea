"""KV memory as the scheduler sees it: slots, who shares whose prefix, what the runner is told."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import msgspec

from afterword.engine.batching.prefix_cache import Match, PrefixCache, Source, common_prefix
from afterword.engine.batching.runner import Fork, KVInstruction, Trim
from afterword.engine.batching.sequence import Prompt, Sequence
from afterword.engine.batching.slots import Slot, Slots

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
    """Slots and the prefix cache in step with each other and with the runner.

    Every change of what a slot holds is an instruction to the runner, in order.
    """

    def __init__(self, slots: Slots, *, least_shared_tokens: int, score_budget_bytes: int) -> None:
        self.slots = slots
        self.cache = PrefixCache(score_budget_bytes)
        self._least_shared_tokens = least_shared_tokens
        self._instructions: list[KVInstruction] = []

    def take_instructions(self) -> SequenceOf[KVInstruction]:
        """What the runner has to do before the next batch."""
        instructions, self._instructions = self._instructions, []
        return instructions

    def source(self, prompt: Prompt, match: Match) -> Source | None:
        """The slot whose KV saves most of a prompt now; its scores take what is known.

        ``match`` is how far the cache goes along with the prompt.
        """
        self.cache.touch(match)
        if prompt.scores is not None:
            self.cache.read(match, prompt.scores)
        most = prompt.first_row
        found = self.cache.best(match, lambda slot: min(slot.computed, most))
        if found is None or found.tokens < self._least_shared_tokens:
            return None
        return found

    def worth_waiting_for(self, prompt: Prompt, match: Match, source: Source | None) -> Wait | None:
        """The running slot that will soon save more of a prompt than ``source`` does.

        A prompt to be scored then follows the owner's: it is told what is found at the position
        where they part.
        """
        coming = self.cache.best(match, lambda slot: slot.will_compute)
        owner = None if coming is None else coming.slot.sequence
        if coming is None or owner is None:
            return None
        slot = coming.slot
        tokens = min(coming.tokens, len(prompt.ids) - 1)
        if tokens <= slot.computed or tokens < self._least_shared_tokens:
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
        return Wait(slot, owner, tokens)

    def claim(self, sequence: Sequence, slot: Slot, source: Source | None) -> int:
        """Give an idle slot to a sequence, with the KV of ``source``; how many tokens it has."""
        reused = source.tokens if source is not None else 0
        if source is not None and source.slot is slot:
            if reused < slot.computed:
                self._instructions.append(Trim(slot.index, reused))
        else:
            if slot.computed:
                self._instructions.append(Trim(slot.index, 0))
            if source is not None:
                # The source is not touched: what it gave lives on in the new slot, and those that
                # begin alike come one after the other.
                self._instructions.append(Fork(source.slot.index, slot.index, reused))
        ids = sequence.prompt.ids
        slot.computed = reused
        slot.tokens[: len(ids)] = ids
        slot.sequence, sequence.slot = sequence, slot
        self.cache.hold(slot, ids)
        self.slots.touch(slot)
        return reused

    def trim(self, slot: Slot, tokens: int) -> None:
        """What was computed in a slot beyond ``tokens`` does not hold."""
        self._instructions.append(Trim(slot.index, tokens))
        slot.computed = tokens

    def leave(self, sequence: Sequence) -> None:
        """Take a sequence out of its slot, which keeps what it has computed."""
        slot = sequence.slot
        if slot is None:
            return
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

    def check(self) -> None:
        """Raise ``AssertionError`` if an invariant does not hold."""
        self.cache.check()
        for slot in self.slots:
            held = slot.node.end if slot.node is not None else 0
            if held < slot.computed and slot.sequence is None:
                raise AssertionError(f"the cache does not know what slot {slot.index} holds")
