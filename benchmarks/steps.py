"""Measures Python's share of a step, without the model, by number of generating sequences.

``python benchmarks/steps.py``; a runner that returns fixed rows of 49,152 logits replaces the
model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from afterword.core.job import Job, SamplingParams
from afterword.core.machine import usable_cores
from afterword.core.protocols import PrefixSharing
from afterword.engine.batching.outcome import evaluate
from afterword.engine.batching.runner import Batch, KVInstruction
from afterword.engine.batching.scheduler import Scheduler
from afterword.engine.llama.native_sampler import make_sampler

VOCABULARY = 49_152
STEPS = 300


class FreeRunner:
    """A ``ModelRunner`` that computes nothing."""

    context_tokens = 1024
    max_batch_tokens = 512
    max_rows = 512
    vocabulary = VOCABULARY
    least_shared_tokens = 4
    block_tokens = 64
    sharing: PrefixSharing = "cells"

    def __init__(self, slots: int) -> None:
        self.sequences = slots
        self.blocks = slots * self.context_tokens // self.block_tokens
        self.slots = slots + self.blocks
        self.sampler = make_sampler(VOCABULARY, usable_cores())
        rng = np.random.default_rng(0)
        self._rows = (3 * rng.standard_normal((slots, VOCABULARY))).astype(np.float32)

    def checkpoint_bytes(self, tokens: int) -> int:
        """Returns any size, because nothing is kept."""
        return tokens

    def apply(self, instructions: Sequence[KVInstruction]) -> None:
        """Do nothing."""

    def decode(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Returns the same rows every time."""
        return self._rows[: int(batch.wanted.sum())]

    def close(self) -> None:
        """Do nothing."""


def step_us(sequences: int, sampling: SamplingParams) -> float:
    """Returns the median microseconds of a step in which each sequence generates a token."""
    runner = FreeRunner(sequences)
    scheduler = Scheduler(runner, frozenset(), score_budget_bytes=0)
    for key in range(sequences):
        prompt = tuple(range(key, key + 8))
        scheduler.add(
            key, [Job(prompt_ids=prompt, n=1, max_tokens=900, sampling=sampling, seed=key)]
        )
    took_us = []
    for _ in range(STEPS):
        started = time.perf_counter()
        step = scheduler.schedule(512)
        if step is None:
            raise RuntimeError("the sequences have ended")
        scheduler.update(step, evaluate(step, runner.decode(step.batch), runner.sampler))
        scheduler.take_events()
        took_us.append((time.perf_counter() - started) * 1e6)
    return statistics.median(took_us)


def main() -> None:
    """Print a line for each number of sequences."""
    for sequences in (1, 8, 32):
        greedy = step_us(sequences, SamplingParams(temperature=0))
        drawn = step_us(sequences, SamplingParams())
        print(
            f"{sequences:>3} sequences: greedy {greedy:.0f} us a step, {greedy / sequences:.0f} a "
            f"token; drawn at temperature 1 {drawn:.0f} us a step, {drawn / sequences:.0f} a token"
        )


if __name__ == "__main__":
    main()
