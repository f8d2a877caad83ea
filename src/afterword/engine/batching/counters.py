"""What an engine did since its start, in numbers."""

from __future__ import annotations

import msgspec

_BATCH_SIZES = 12
"""Histogram buckets: up to 1, 2, 4 and so on to 1,024 sequences, then all larger batches."""


class Counters(msgspec.Struct):
    """Totals since the start; they only grow. See ``core.protocols.EngineStats``.

    A drafted token counts as decoded, an accepted one also as generated. ``waited_s`` sums the
    seconds that each of ``started_requests`` spent in line before its first slot or its answer.
    ``preemptions`` counts sequences that gave their memory to others and went on later.
    """

    steps: int = 0
    batch_sizes: list[int] = msgspec.field(default_factory=lambda: [0] * _BATCH_SIZES)
    batched_sequences: int = 0
    decoded_tokens: int = 0
    prefilled_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    started_requests: int = 0
    waited_s: float = 0.0
    preemptions: int = 0

    def copy(self) -> Counters:
        """Returns a snapshot that does not change any more."""
        return msgspec.structs.replace(self, batch_sizes=list(self.batch_sizes))

    def count_step(self, sequences: int) -> None:
        """Count a step that computed ``sequences`` sequences together."""
        self.steps += 1
        self.batch_sizes[min((sequences - 1).bit_length(), _BATCH_SIZES - 1)] += 1
        self.batched_sequences += sequences
