"""llama.cpp as a ``ModelRunner``: applies KV instructions to cells, computes rows of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np
import numpy.typing as npt

from afterword.core.protocols import PrefixSharing
from afterword.engine.batching.blocks import BlockCopy, BlockTables, NoBlocksError
from afterword.engine.batching.runner import (
    Batch,
    DecodeError,
    Drop,
    FatalDecodeError,
    Fork,
    KVInstruction,
    Restore,
    Save,
    Trim,
)
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.context import (
    BLOCK_TOKENS,
    ContextOptions,
    LlamaContext,
    State,
    context_blocks,
)
from afterword.engine.llama.guard import NativeError
from afterword.engine.llama.memory import ModelMemory, model_memory
from afterword.engine.llama.native_sampler import make_sampler

BATCH_TOKENS = 512
_ROW_BYTES = 64 * 1024 * 1024
"""Memory for the rows of logits of one step."""
_WIDEST_FILL = 3
"""Up to this many idle slots in a gap are cheaper to compute through than to split a batch."""
_FATAL_AFTER = 3
"""Consecutive failures after which the runner gives up."""


@contextmanager
def _failing_alone() -> Iterator[None]:
    """Turn an exception of the library, or a lack of memory, into ``DecodeError``."""
    try:
        yield
    except (NativeError, MemoryError, NoBlocksError) as error:
        raise DecodeError(str(error) or "there is no memory left") from error


class _Tables:
    """The blocks of all slots, as arrays that the library reads."""

    def __init__(self, context: LlamaContext, blocks: int, slots: int, table_blocks: int) -> None:
        self._context = context
        self._tables = BlockTables(blocks, BLOCK_TOKENS)
        # Pages of slots that were never used take no memory.
        self._rows = np.zeros((slots, table_blocks), np.int32)
        self._counts = np.zeros(slots, np.int32)
        self._first = self._rows.ctypes.data
        self._stride = self._rows.strides[0]

    def carry_out(self, instruction: KVInstruction) -> None:
        """Carry out a fork or a trim. Raises ``DecodeError`` for states, which blocks have not."""
        copied: BlockCopy | None
        match instruction:
            case Fork(source, slot, tokens):
                copied = self._tables.fork(source, slot, tokens)
            case Trim(slot, tokens):
                copied = self._tables.trim(slot, tokens)
            case Save() | Restore():
                raise DecodeError("slots of blocks have no states to copy")
            case Drop():
                return
        if copied is not None:
            self._context.copy_cells(copied.source, copied.destination, copied.tokens)
        self._write(slot)

    def bind(self, batch: Batch) -> npt.NDArray[np.int32]:
        """Give the slots of a batch blocks for its tokens, and tell the library where they are.

        Returns the library's number for the slot of each token, 0, 1, 2 and so on.
        """
        slots = batch.slots
        begins = np.empty(len(slots), np.bool_)
        begins[0] = True
        np.not_equal(slots[1:], slots[:-1], out=begins[1:])
        firsts = np.flatnonzero(begins)
        lasts = np.append(firsts[1:], len(slots)) - 1
        mine = slots[firsts]
        needed = batch.positions[lasts] // BLOCK_TOKENS + 1
        for at in np.flatnonzero(needed > self._counts[mine]).tolist():
            self._tables.grow(int(mine[at]), int(batch.positions[lasts[at]]) + 1)
            self._write(int(mine[at]))
        addresses = (self._first + mine.astype(np.uintp) * self._stride).astype(np.uintp)
        self._context.bind(addresses, batch.positions[firsts])
        return begins.cumsum(dtype=np.int32) - 1

    def _write(self, slot: int) -> None:
        table = self._tables.table(slot)
        self._counts[slot] = len(table)
        self._rows[slot, : len(table)] = table


class LlamaRunner:
    """One context and its slots; it closes the context and the model. Used by one thread.

    A context that is not ``ragged`` splits a batch where slots have different numbers of tokens
    and at every gap of idle slots, and reads all weights again for each part. So the runner adds
    one token to each idle slot in a narrow gap, and removes it at once; no row depends on it.
    Recurrent state cannot remove a token, so gaps stay there.
    """

    least_shared_tokens = 4

    def __init__(
        self,
        model: LlamaModel,
        context: LlamaContext,
        options: ContextOptions,
        sharing: PrefixSharing,
        memory: ModelMemory | None = None,
    ) -> None:
        self.sharing = sharing
        self._memory = memory
        self._options = options
        self._model = model
        self._context = context
        self._states: dict[int, State] = {}
        self._failures = 0
        self.sequences = options.slots
        self.blocks = options.blocks if context.in_blocks else 0
        self.block_tokens = BLOCK_TOKENS
        # With blocks there may be as many slots as blocks, each with a prefix of its own.
        self.slots = options.slots + self.blocks
        self._lengths = np.zeros(self.slots, np.int64)
        self._tables: _Tables | None = None
        if self.blocks:
            most = -(-min(options.slot_tokens, context.slot_tokens) // BLOCK_TOKENS)
            self._tables = _Tables(context, self.blocks, self.slots, most)
        self.context_tokens = min(options.slot_tokens, self._context.slot_tokens)
        self.max_batch_tokens = self._context.batch_tokens
        self.max_rows = options.max_rows
        self.vocabulary = model.vocabulary
        self.ragged = context.ragged
        self.sampler = make_sampler(model.vocabulary, options.threads)
        self._fills_gaps = model.can_trim and not context.ragged

    def checkpoint_bytes(self, tokens: int) -> int:
        """Returns the most bytes that a whole state of ``tokens`` tokens takes."""
        if self._memory is None:
            self._memory = model_memory(self._model, self._options)
        return self._memory.state_bytes(tokens)

    @_failing_alone()
    def apply(self, instructions: Sequence[KVInstruction]) -> None:
        """Carry out instructions in order. Raises ``DecodeError``."""
        for instruction in instructions:
            if self._tables is not None:
                self._tables.carry_out(instruction)
                continue
            match instruction:
                case Fork(source, destination, tokens):
                    if not self._context.fork(source, destination, tokens):
                        self._restore(self._save(source), destination)
                        self._remove(destination, tokens)
                    self._lengths[destination] = tokens
                case Trim(slot, tokens):
                    self._remove(slot, tokens)
                    self._lengths[slot] = tokens
                case Save(slot, number):
                    self._states[number] = self._save(slot)
                case Restore(number, slot, tokens):
                    self._restore(self._states[number], slot)
                    self._lengths[slot] = tokens
                case Drop(number):
                    self._states.pop(number, None)

    def _save(self, slot: int) -> State:
        state = self._context.save(slot)
        if not len(state):
            raise DecodeError(f"the state of slot {slot} cannot be copied")
        return state

    def _restore(self, state: State, slot: int) -> None:
        if not self._context.restore(state, slot):
            raise DecodeError(f"no room for a copy in slot {slot}")

    def _remove(self, slot: int, start: int) -> None:
        if not self._context.remove(slot, start):
            raise DecodeError(f"slot {slot} cannot remove its tokens from {start} on")

    @_failing_alone()
    def decode(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Returns the rows [wanted, vocabulary] as a view that the next batch overwrites.

        Raises ``DecodeError``, and ``FatalDecodeError`` after repeated failures.
        """
        if self._tables is not None:
            slots = self._tables.bind(batch)
            batch = msgspec.structs.replace(batch, slots=slots)
        filler = self._filler(batch) if self._fills_gaps else []
        if filler:
            at = np.searchsorted(batch.slots, filler)
            code = self._context.decode(
                np.insert(batch.tokens, at, 0),
                np.insert(batch.positions, at, self._lengths[filler]),
                np.insert(batch.slots, at, filler),
                np.insert(batch.wanted, at, values=False),
            )
            for slot in filler:
                self._remove(slot, int(self._lengths[slot]))
        else:
            code = self._context.decode(batch.tokens, batch.positions, batch.slots, batch.wanted)
        if code:
            self._failures += 1
            kind = FatalDecodeError if self._failures >= _FATAL_AFTER else DecodeError
            raise kind(f"llama_decode returned {code}")
        self._failures = 0
        if self._fills_gaps:
            np.maximum.at(self._lengths, batch.slots, batch.positions.astype(np.int64) + 1)
        return self._context.rows(int(batch.wanted.sum()))

    def close(self) -> None:
        """Free context, model and checkpoints. Idempotent."""
        self._states.clear()
        self._context.close()
        self._model.close()

    def _filler(self, batch: Batch) -> list[int]:
        """Returns the idle slots of narrow gaps between the batch's slots, if all have room."""
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
    """Returns how many rows of logits one step may want."""
    return max(32, min(BATCH_TOKENS, _ROW_BYTES // (4 * model.vocabulary)))


@contextmanager
def temporary_runner(
    model: LlamaModel, threads: int, *, exact: bool, slots: int, room: int
) -> Iterator[LlamaRunner]:
    """A runner with room for up to ``room`` tokens a slot; it leaves the model open."""
    tokens = min(room, model.context_tokens)
    made = ContextOptions(
        slots=slots,
        slot_tokens=tokens,
        blocks=slots * context_blocks(tokens),
        batch_tokens=BATCH_TOKENS,
        max_rows=most_rows(model),
        threads=threads,
        exact=exact,
    )
    context = LlamaContext(model, made)
    try:
        yield LlamaRunner(model, context, made, model.unproven_sharing)
    finally:
        context.close()
