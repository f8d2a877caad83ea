"""llama.cpp as a ``ModelRunner``: instructions become cells, batches become rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from afterword.engine.batching.runner import (
    Batch,
    DecodeError,
    FatalDecodeError,
    Fork,
    KVInstruction,
    Trim,
)
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.context import ContextOptions, LlamaContext, exponentials
from afterword.engine.llama.guard import NativeError

BATCH_TOKENS = 512
_ROW_BYTES = 64 * 1024 * 1024
"""Rows of logits that one step may want, as memory."""
_WIDEST_FILL = 3
"""A gap of idle slots up to this wide is cheaper to compute through than to split a batch at."""
_FATAL_AFTER = 3
"""Failures in a row after which the context is given up."""


@contextmanager
def _failing_alone() -> Iterator[None]:
    """What the library throws fails a step, and not the engine."""
    try:
        yield
    except NativeError as error:
        raise DecodeError(str(error)) from error


class LlamaRunner:
    """One context and its slots, which it closes with the model. Used by one thread.

    Where the library cannot compute sequences of unequal lengths together, it computes the tokens
    that neighbouring slots have all, and starts anew with the rest and at every gap, reading all
    weights again. Idle slots in a gap are then given a token to compute, which is forgotten at
    once; no row depends on it.
    """

    exponentials = staticmethod(exponentials)

    def __init__(self, model: LlamaModel, context: LlamaContext, options: ContextOptions) -> None:
        self._model = model
        self._context = context
        self._lengths = np.zeros(options.slots, np.int64)
        self._failures = 0
        self.slots = options.slots
        self.context_tokens = min(options.slot_tokens, self._context.slot_tokens)
        self.max_batch_tokens = self._context.batch_tokens
        self.max_rows = options.max_rows
        self.vocabulary = model.vocabulary
        self.ragged = context.ragged
        # Where the end of a state cannot be trimmed, no prefix can be shared.
        self.least_shared_tokens = 4 if model.can_trim else self.context_tokens + 1

    @_failing_alone()
    def apply(self, instructions: Sequence[KVInstruction]) -> None:
        """Carry out instructions in their order."""
        for instruction in instructions:
            match instruction:
                case Fork(source, destination, tokens):
                    if not self._context.fork(source, destination, tokens):
                        raise DecodeError(f"no room for a copy of slot {source}")
                    self._lengths[destination] = tokens
                case Trim(slot, tokens):
                    self._context.remove(slot, tokens)
                    self._lengths[slot] = tokens

    def decode(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Rows of the wanted tokens, a view that the next batch overwrites."""
        filler = [] if self.ragged else self._filler(batch)
        if filler:
            at = np.searchsorted(batch.slots, filler)
            code = self._context.decode(
                np.insert(batch.tokens, at, 0),
                np.insert(batch.positions, at, self._lengths[filler]),
                np.insert(batch.slots, at, filler),
                np.insert(batch.wanted, at, values=False),
            )
            for slot in filler:
                self._context.remove(slot, int(self._lengths[slot]))
        else:
            code = self._context.decode(batch.tokens, batch.positions, batch.slots, batch.wanted)
        if code:
            self._failures += 1
            kind = FatalDecodeError if self._failures >= _FATAL_AFTER else DecodeError
            raise kind(f"llama_decode returned {code}")
        self._failures = 0
        np.maximum.at(self._lengths, batch.slots, batch.positions.astype(np.int64) + 1)
        return self._context.rows(int(batch.wanted.sum()))

    def close(self) -> None:
        """Free context and model. Idempotent."""
        self._context.close()
        self._model.close()

    def _filler(self, batch: Batch) -> list[int]:
        """Idle slots in narrow gaps between the batch's slots that have room for a token."""
        used = np.flatnonzero(np.bincount(batch.slots, minlength=self.slots))
        gaps = np.flatnonzero(np.diff(used) > 1)
        filler: list[int] = []
        for left, right in zip(used[gaps].tolist(), used[gaps + 1].tolist(), strict=True):
            gap = range(left + 1, right)
            if len(gap) <= _WIDEST_FILL and all(
                self._lengths[slot] < self.context_tokens for slot in gap
            ):
                filler.extend(gap)
        return filler


def most_rows(model: LlamaModel) -> int:
    """Rows of logits that one step may want."""
    return max(32, min(BATCH_TOKENS, _ROW_BYTES // (4 * model.vocabulary)))


@contextmanager
def temporary_runner(
    model: LlamaModel, threads: int, *, exact: bool, slots: int, room: int
) -> Iterator[LlamaRunner]:
    """A runner with room for ``room`` tokens a slot at most; the model stays open after it."""
    made = ContextOptions(
        slots=slots,
        slot_tokens=min(room, model.context_tokens),
        batch_tokens=BATCH_TOKENS,
        max_rows=most_rows(model),
        threads=threads,
        exact=exact,
    )
    context = LlamaContext(model, made)
    try:
        yield LlamaRunner(model, context, made)
    finally:
        context.close()
