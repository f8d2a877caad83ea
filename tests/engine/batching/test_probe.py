"""The probe tells batch-invariant runners and exact sharing from others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from afterword.core.protocols import PrefixSharing
from afterword.engine.batching.probe import batch_difference, proven_sharing
from afterword.engine.batching.runner import Batch, Fork, KVInstruction, Restore, Trim
from afterword.engine.toy import ToyRunner, ToyTokenizer

VOCABULARY = len(ToyTokenizer().pieces)


class BatchDependent(ToyRunner):
    """A runner whose rows depend on their batch in the last bit."""

    about = "size"

    def decode(self, batch: Batch) -> npt.NDArray[np.float32]:
        rows = super().decode(batch)
        told = {
            "size": len(batch.tokens) > 1,
            "tiles": len(batch.tokens) >= 64,
            "other slots": len(set(batch.slots.tolist())) > 1,
            "slot": int(batch.slots.max()) > 0,
            "chunks": len(batch.tokens) > len(set(batch.slots.tolist())),
        }[self.about]
        return np.nextafter(rows, np.float32(np.inf)) if told else rows


class Forgetful(ToyRunner):
    """A runner whose copies or trims lose tokens behind a window, which changes one hash."""

    loses: type[KVInstruction] = Fork
    window = 24

    def apply(self, instructions: Sequence[KVInstruction]) -> None:
        for instruction in instructions:
            before = [len(cells) for cells in self._cells]
            super().apply([instruction])
            match instruction:
                case Fork(source, slot, tokens) if self.loses is Fork:
                    lost = before[source] - tokens >= self.window
                case Trim(slot, tokens) if self.loses is Trim:
                    lost = bool(tokens)
                case Restore(_, slot, _) if self.loses is Restore:
                    lost = True
                case _:
                    continue
            if lost and self._hashes[slot]:
                self._hashes[slot][-1] ^= 1


@pytest.mark.parametrize("slots", [1, 2, 4, 8])
def test_a_sound_runner_passes_and_is_left_empty(slots: int) -> None:
    runner = ToyRunner(VOCABULARY, slots=slots, context_tokens=256, max_batch_tokens=128)
    assert batch_difference(runner) == 0
    assert batch_difference(runner) == 0


@pytest.mark.parametrize("about", ["size", "tiles", "other slots", "slot", "chunks"])
def test_a_batch_dependent_runner_fails(about: str) -> None:
    runner = BatchDependent(VOCABULARY, slots=4, context_tokens=256, max_batch_tokens=128)
    runner.about = about
    assert 0 < batch_difference(runner) < 1e-3


def test_a_runner_that_mixes_up_sequences_differs_more_than_rounding() -> None:
    class Mixing(ToyRunner):
        def decode(self, batch: Batch) -> npt.NDArray[np.float32]:
            return np.flip(super().decode(batch), axis=0)

    runner = Mixing(VOCABULARY, slots=4, context_tokens=256, max_batch_tokens=128)
    assert batch_difference(runner) > 1


def test_a_runner_with_too_little_room_fails() -> None:
    runner = ToyRunner(VOCABULARY, slots=4, context_tokens=16, max_batch_tokens=64)
    assert batch_difference(runner) == float("inf")


@pytest.mark.parametrize("sharing", ["cells", "checkpoints", "none"])
def test_an_exact_kind_of_sharing_is_kept(sharing: PrefixSharing) -> None:
    runner = ToyRunner(
        VOCABULARY, slots=4, context_tokens=256, max_batch_tokens=128, sharing=sharing
    )
    for _ in range(2):
        assert proven_sharing(runner) == sharing
        assert batch_difference(runner) == 0


@pytest.mark.parametrize("loses", [Fork, Trim])
def test_lost_cells_are_noticed(loses: type[KVInstruction]) -> None:
    runner = Forgetful(VOCABULARY, slots=4, context_tokens=256, max_batch_tokens=128)
    runner.loses = loses
    # Whole states lose nothing.
    assert batch_difference(runner) == 0
    assert proven_sharing(runner) == "checkpoints"


def test_lost_states_are_noticed() -> None:
    runner = Forgetful(
        VOCABULARY, slots=4, context_tokens=256, max_batch_tokens=128, sharing="checkpoints"
    )
    runner.loses = Restore
    assert proven_sharing(runner) == "none"


def test_one_slot_has_nothing_to_share() -> None:
    runner = ToyRunner(VOCABULARY, slots=1, context_tokens=256, max_batch_tokens=128)
    assert proven_sharing(runner) == "none"
