"""Tests at start what a runner guarantees, instead of assuming it (D1).

The probe tests batch invariance (a row of logits does not depend on the rest of its batch), and
whether a reused prefix gives the same rows as one that is computed again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from afterword.core.protocols import PrefixSharing
from afterword.engine.arrays import Ids, Row
from afterword.engine.batching.runner import (
    Batch,
    DecodeError,
    Drop,
    Fork,
    KVInstruction,
    ModelRunner,
    Restore,
    Save,
    Trim,
)

PROMPT_TOKENS = 66
"""Some attention kernels work in tiles from 64 rows on; this is longer."""
WINDOW_TOKENS = 24
"""The longest sliding window that the probe can look behind."""
_STEPS = ((3, 1), (40, 2), (41, 2))
"""Where chunks of the prompt end, and how many tokens each neighbour computes beside one."""
_AFTER = 4
"""Tokens after the prompt: each has a step of its own, but among others the last are one chunk."""
_NEIGHBOURS = 3
_BEYOND = 8
"""Tokens that the source of a fork has after the shared prefix."""
_STRIDE, _START = 7919, 13
_LEAST = 1e-12

_Share: TypeAlias = Callable[[ModelRunner, Ids], Iterable[list[Row]]]


def batch_difference(runner: ModelRunner) -> float:
    """Compare rows of a prompt computed alone with rows computed in chunks among other sequences.

    Takes about 200 tokens of prefill. ``runner`` must be unused, and is left empty.

    Returns:
        0.0 if all rows are equal bit for bit. Otherwise the largest difference of log-probability
        of a row's likeliest token, in nats; infinity if the runner has too little room for a test.
    """
    tokens = _tokens(runner)
    prompt = len(tokens) - _AFTER
    if prompt <= _STEPS[-1][0]:
        return float("inf")
    alone = _rows_alone(runner, tokens)
    mine = runner.sequences - 1
    others = range(max(0, mine - _NEIGHBOURS), mine)
    pairs: list[tuple[Row, Row]] = []
    start = done = 0
    for end, beside in (*_STEPS, (prompt, 2), (prompt + 1, 1), (len(tokens), 1)):
        parts = [(slot, tokens[slot + done : slot + done + beside], done) for slot in others]
        row = _row(runner, [*parts, (mine, tokens[start:end], start)], mine)
        start, done = end, done + beside
        if end >= prompt:
            pairs.append((alone[end - prompt], row))
    _clear(runner, (*others, mine))
    if all(np.array_equal(a, b) for a, b in pairs):
        return 0.0
    return max(_nats_apart(a, b) for a, b in pairs)


def proven_sharing(runner: ModelRunner) -> PrefixSharing:
    """Returns the strongest kind of sharing, up to the runner's own, that changes no bit of a row.

    The probe forks prefixes from a longer neighbour and from a fork, before and behind a sliding
    window of ``WINDOW_TOKENS``, into slots that were used before, and trims ends and computes them
    again. Takes about 200 tokens of prefill. ``runner`` must be unused and batch invariant, and is
    left empty.
    """
    if runner.sequences < 2:
        return "none"
    tokens = _tokens(runner)
    alone = _rows_alone(runner, tokens)
    if runner.sharing == "cells" and _changes_nothing(runner, _shared_cells, tokens, alone):
        return "cells"
    if runner.sharing != "none" and _changes_nothing(runner, _shared_states, tokens, alone):
        return "checkpoints"
    return "none"


def _changes_nothing(runner: ModelRunner, share: _Share, tokens: Ids, alone: list[Row]) -> bool:
    """Whether shared rows are those of a prompt alone. False if the runner fails to share."""
    try:
        return _identical(alone, *share(runner, tokens))
    except DecodeError:
        return False
    finally:
        _clear(runner, (0, 1))
        runner.apply([Drop(0), Drop(1)])


def _shared_cells(runner: ModelRunner, tokens: Ids) -> Iterable[list[Row]]:
    """Returns the last rows of the prompt for each way in which a slot can get its prefix."""
    end = len(tokens)
    other = (tokens[:_BEYOND] + 1) % runner.vocabulary
    late = end - 2 * _AFTER
    _row(runner, [(0, tokens[:late], 0)], 0)
    _row(runner, [(0, other, late)], 0)
    ways: list[tuple[int, int, list[KVInstruction]]] = [
        (1, late, [Fork(0, 1, late)]),
        (1, end // 2, [Trim(1, 0), Fork(0, 1, end // 2)]),
        (0, end - 20, [Trim(0, end - 20)]),
        (1, 10, [Trim(1, 0), Fork(0, 1, 10)]),
    ]
    found = []
    for slot, start, instructions in ways:
        runner.apply(instructions)
        found.append(_last_rows(runner, slot, tokens, start))
    return found


def _shared_states(runner: ModelRunner, tokens: Ids) -> Iterable[list[Row]]:
    """Returns the same as ``_shared_cells``, with copies of whole states."""
    early, late = len(tokens) // 3, len(tokens) - 2 * _AFTER
    _row(runner, [(0, tokens[:early], 0)], 0)
    runner.apply([Save(0, 0)])
    _row(runner, [(0, tokens[early:late], early)], 0)
    runner.apply([Save(0, 1), Fork(0, 1, late)])
    ways: list[tuple[int, int, list[KVInstruction]]] = [
        (1, late, []),
        (0, late, []),
        (1, early, [Trim(1, 0), Restore(0, 1, early)]),
        (0, late, [Trim(0, 0), Restore(1, 0, late)]),
        (0, early, [Trim(0, 0), Restore(0, 0, early)]),
    ]
    found = []
    for slot, start, instructions in ways:
        runner.apply(instructions)
        found.append(_last_rows(runner, slot, tokens, start))
    return found


def _tokens(runner: ModelRunner) -> Ids:
    """Returns a prompt and ``_AFTER`` more tokens, spread over the whole vocabulary."""
    room = min(runner.context_tokens - _AFTER, runner.max_batch_tokens - 2 * _NEIGHBOURS)
    prompt = max(1, min(PROMPT_TOKENS, room))
    return (np.arange(prompt + _AFTER) * _STRIDE + _START) % runner.vocabulary


def _rows_alone(runner: ModelRunner, tokens: Ids) -> list[Row]:
    rows = _last_rows(runner, 0, tokens, 0)
    _clear(runner, (0,))
    return rows


def _last_rows(runner: ModelRunner, slot: int, tokens: Ids, start: int) -> list[Row]:
    """Compute from ``start`` on; returns the rows of the prompt's last token and those after."""
    edges = (start, *range(len(tokens) - _AFTER, len(tokens) + 1))
    return [
        _row(runner, [(slot, tokens[begin:end], begin)], slot)
        for begin, end in itertools.pairwise(edges)
    ]


def _clear(runner: ModelRunner, slots: Iterable[int]) -> None:
    runner.apply([Trim(slot, 0) for slot in slots])


def _nats_apart(row: Row, other: Row) -> float:
    """Returns by how much the log-probability of a row's likeliest token differs; never 0."""
    likeliest = int(row.argmax())
    a, b = (_logprob(values.astype(np.float64), likeliest) for values in (row, other))
    return max(abs(a - b), _LEAST)


def _logprob(row: npt.NDArray[np.float64], token: int) -> float:
    return float(row[token] - row.max() - np.log(np.exp(row - row.max()).sum()))


def _identical(first: list[Row], *others: list[Row]) -> bool:
    return all(np.array_equal(a, b) for rows in others for a, b in zip(first, rows, strict=True))


def _row(runner: ModelRunner, parts: Sequence[tuple[int, Ids, int]], slot: int) -> Row:
    """Compute parts (slot, tokens, first position) in one batch.

    Returns a copy of the last row of ``slot``.
    """
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
    row: Row = rows[order.index(slot)].copy()
    return row
