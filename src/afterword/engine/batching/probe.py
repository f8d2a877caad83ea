"""Whether a row of logits depends on the rest of its batch: asked at start, not assumed (D1)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from afterword.engine.batching.runner import Batch, ModelRunner, Trim

_PROMPT_TOKENS = 66
"""Longer than the 64 rows from which on some attention kernels work in tiles."""
_CHUNKS = (3, 40)
_NEIGHBOURS = 3
_STRIDE, _START = 7919, 13


def is_batch_invariant(runner: ModelRunner) -> bool:
    """Compute a prompt alone in one batch, then in chunks beside others; are rows bitwise equal?

    Takes about 180 tokens of prefill. ``runner`` must be unused, and is left empty.
    """
    prompt = min(_PROMPT_TOKENS, runner.context_tokens - 1, runner.max_batch_tokens - _NEIGHBOURS)
    if prompt <= _CHUNKS[-1]:
        return False  # too little room to tell
    tokens = (np.arange(prompt + 1) * _STRIDE + _START) % runner.vocabulary
    alone = [
        _row(runner, [(0, tokens[:prompt], 0)], 0),
        _row(runner, [(0, tokens[prompt:], prompt)], 0),
    ]
    runner.apply([Trim(0, 0)])
    mine = runner.slots - 1
    others = range(max(0, mine - _NEIGHBOURS), mine)
    together: list[npt.NDArray[np.float32]] = []
    edges = (0, *_CHUNKS, prompt, prompt + 1)
    for step, (start, end) in enumerate(itertools.pairwise(edges)):
        # Every neighbour has a token of its own in each step.
        parts = [(slot, tokens[slot + step : slot + step + 1], step) for slot in others]
        row = _row(runner, [*parts, (mine, tokens[start:end], start)], mine)
        if end >= prompt:
            together.append(row)
    runner.apply([Trim(slot, 0) for slot in (*others, mine)])
    return all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def _row(
    runner: ModelRunner, parts: Sequence[tuple[int, npt.NDArray[np.int64], int]], slot: int
) -> npt.NDArray[np.float32]:
    """Compute (slot, tokens, first position) in one batch; a copy of the slot's last row."""
    tokens = np.concatenate([ids for _, ids, _ in parts])
    positions = np.concatenate([start + np.arange(len(ids)) for _, ids, start in parts])
    slots = np.concatenate([np.full(len(ids), index) for index, ids, _ in parts])
    wanted = np.zeros(len(tokens), np.bool_)
    for index in {index for index, _, _ in parts}:
        wanted[np.flatnonzero(slots == index)[-1]] = True
    batch = Batch(
        tokens.astype(np.int32), positions.astype(np.int32), slots.astype(np.int32), wanted
    )
    rows = runner.decode(batch)
    order = slots[wanted].tolist()
    row: npt.NDArray[np.float32] = rows[order.index(slot)].copy()
    return row
