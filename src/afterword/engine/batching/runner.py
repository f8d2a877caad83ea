"""What the scheduler expects of a model: KV instructions and batches in, rows of logits out.

Instructions speak of slots, lengths and numbered checkpoints only, so that a runner can turn them
into copies of cells, sequence ids or block tables as its memory is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from afterword.core.protocols import PrefixSharing
from afterword.engine.sampler import Exponentials


class Fork(msgspec.Struct, frozen=True):
    """Give ``destination`` the KV of the first ``tokens`` tokens of ``source``; it had none.

    Where only whole states are shared, ``tokens`` is all that the source has.
    """

    source: int
    destination: int
    tokens: int


class Trim(msgspec.Struct, frozen=True):
    """Keep the KV of the first ``tokens`` tokens of ``slot`` and free the rest; 0 frees all.

    Where only whole states are shared, ``tokens`` is 0.
    """

    slot: int
    tokens: int


class Save(msgspec.Struct, frozen=True):
    """Copy all that ``slot`` has into a new checkpoint."""

    slot: int
    checkpoint: int


class Restore(msgspec.Struct, frozen=True):
    """Give ``slot``, which had none, the KV of a checkpoint with ``tokens`` tokens."""

    checkpoint: int
    slot: int
    tokens: int


class Drop(msgspec.Struct, frozen=True):
    """Free a checkpoint; one that was never saved is none."""

    checkpoint: int


KVInstruction: TypeAlias = Fork | Trim | Save | Restore | Drop


class Batch(msgspec.Struct, frozen=True):
    """Tokens to compute in one step, grouped by slot, positions ascending in each group.

    Four arrays of one length; ``wanted`` marks the tokens whose row of logits is needed.
    """

    tokens: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    slots: npt.NDArray[np.int32]
    wanted: npt.NDArray[np.bool_]


class DecodeError(Exception):
    """A step failed; what the runner holds of the slots in it is lost, the rest is sound."""


class FatalDecodeError(DecodeError):
    """The runner cannot go on."""


class ModelRunner(Protocol):
    """A model with KV memory for a fixed number of slots. Used by one thread."""

    @property
    def slots(self) -> int:
        """How many sequences can have KV at once."""

    @property
    def context_tokens(self) -> int:
        """Tokens that each slot can hold, whatever the others hold."""

    @property
    def max_batch_tokens(self) -> int:
        """Tokens that one batch can have."""

    @property
    def max_rows(self) -> int:
        """Rows that one batch can want."""

    @property
    def vocabulary(self) -> int:
        """Width of a row."""

    @property
    def exponentials(self) -> Exponentials:
        """What the sampler takes exponentials of rows with."""

    @property
    def sharing(self) -> PrefixSharing:
        """How prefixes can be shared without changing an answer."""

    @property
    def least_shared_tokens(self) -> int:
        """The shortest prefix that is cheaper to fork than to compute."""

    def checkpoint_bytes(self, tokens: int) -> int:
        """Memory of a checkpoint with so many tokens."""

    def apply(self, instructions: Sequence[KVInstruction]) -> None:
        """Carry out instructions in their order."""

    def decode(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Rows of the wanted tokens in their order, valid until the next call.

        Raises ``DecodeError``.
        """

    def close(self) -> None:
        """Free everything. Idempotent."""
