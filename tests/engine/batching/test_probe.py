"""The probe tells runners that keep the promise from those that do not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from afterword.engine.batching.probe import is_batch_invariant
from afterword.engine.batching.runner import Batch
from afterword.engine.toy import ToyRunner, ToyTokenizer

VOCABULARY = len(ToyTokenizer().pieces)


class Careless(ToyRunner):
    """Rows that know something of their batch, in the last bit."""

    about = "size"

    def decode(self, batch: Batch) -> npt.NDArray[np.float32]:
        rows = super().decode(batch)
        told = {
            "size": len(batch.tokens) > 1,
            "tiles": len(batch.tokens) >= 64,
            "company": len(set(batch.slots.tolist())) > 1,
            "slot": int(batch.slots.max()) > 0,
        }[self.about]
        return np.nextafter(rows, np.float32(np.inf)) if told else rows


@pytest.mark.parametrize("slots", [1, 2, 4, 8])
def test_a_sound_runner_passes_and_is_left_empty(slots: int) -> None:
    runner = ToyRunner(VOCABULARY, slots=slots, context_tokens=256, max_batch_tokens=128)
    assert is_batch_invariant(runner)
    assert is_batch_invariant(runner)


@pytest.mark.parametrize("about", ["size", "tiles", "company", "slot"])
def test_a_careless_one_does_not(about: str) -> None:
    runner = Careless(VOCABULARY, slots=4, context_tokens=256, max_batch_tokens=128)
    runner.about = about
    assert not is_batch_invariant(runner)


def test_too_little_room_to_tell() -> None:
    runner = ToyRunner(VOCABULARY, slots=4, context_tokens=16, max_batch_tokens=64)
    assert not is_batch_invariant(runner)
