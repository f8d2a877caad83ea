"""What the scheduler expects of a model: KV instructions and batches in, rows of logits out.

Instructions name only slots, lengths and numbered checkpoints, so that a runner can turn them
into copies of cells, sequence ids or block tables, whatever its memory is made of. A slot is a
name for the KV of one sequence, running or not; if memory is blocks, there are many slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from afterword.core.protocols import PrefixSharing
from afterword.engine.sampler import Sampler


class Fork(msgspec.Struct, frozen=True):
    """Give ``destination``, which is empty, the KV of the first ``tokens`` tokens of ``source``.

    With sharing "checkpoints", ``tokens`` is all that the source has.
    """

    source: int
    destination: int
    tokens: int


class Trim(msgspec.Struct, frozen=True):
    """Keep the KV of the first ``tokens`` tokens of ``slot`` and free the rest; 0 frees all.

    Unless sharing is "cells", ``tokens`` is 0.
    """

    slot: int
    tokens: int


class Save(msgspec.Struct, frozen=True):
    """Copy the whole state of ``slot`` into a new checkpoint."""

    slot: int
    checkpoint: int


class Restore(msgspec.Struct, frozen=True):
    """Give ``slot``, which is empty, the KV of a checkpoint with ``tokens`` tokens."""

    checkpoint: int
    slot: int
    tokens: int


class Drop(msgspec.Struct, frozen=True):
    """Free a checkpoint; do nothing if it was never saved."""

    checkpoint: int


KVInstruction: TypeAlias = Fork | Trim | Save | Restore | Drop


class Batch(msgspec.Struct, frozen=True):
    """Tokens to compute in one step, grouped by slot, positions ascending in each group.

    All four arrays have the shape [tokens]; ``wanted`` marks those whose row of logits is needed.
    """

    tokens: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    slots: npt.NDArray[np.int32]
    wanted: npt.NDArray[np.bool_]


class DecodeError(Exception):
    """A step failed. The KV of its slots is lost; other slots are intact."""


class FatalDecodeError(DecodeError):
    """The runner cannot go on."""


class ModelRunner(Protocol):
    """A model with KV memory for a fixed number of slots. Used by one thread."""

    @property
    def slots(self) -> int:
        """Number of sequences that can have KV at once, running or not."""

    @property
    def sequences(self) -> int:
        """Number of sequences that can run at once, at most ``slots``."""

    @property
    def blocks(self) -> int:
        """Number of blocks that all slots share; 0 if each slot has memory of its own."""

    @property
    def block_tokens(self) -> int:
        """Tokens that a block has room for."""

    @property
    def context_tokens(self) -> int:
        """Tokens that a slot can hold; without blocks, independent of the other slots."""

    @property
    def max_batch_tokens(self) -> int:
        """Maximum number of tokens in a batch."""

    @property
    def max_rows(self) -> int:
        """Maximum number of wanted rows in a batch."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens in the vocabulary, which is the width of a row."""

    @property
    def sampler(self) -> Sampler:
        """Draws tokens from rows, and scores them. Used by the same thread."""

    @property
    def sharing(self) -> PrefixSharing:
        """How prefixes can be shared without changing an answer."""

    @property
    def least_shared_tokens(self) -> int:
        """The shortest prefix that is cheaper to fork than to compute."""

    def checkpoint_bytes(self, tokens: int) -> int:
        """Returns the bytes that a checkpoint of ``tokens`` tokens takes at most."""

    def apply(self, instructions: Sequence[KVInstruction]) -> None:
        """Carry out instructions in order. Raises ``DecodeError``."""

    def decode(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Returns the rows [wanted, vocabulary] in batch order, valid until the next call.

        Raises ``DecodeError``.
        """

    def close(self) -> None:
        """Free everything. Idempotent."""
