"""One planned step: KV instructions, a batch, and the spans that its rows belong to."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import msgspec
import numpy as np

from afterword.engine.batching.runner import Batch, KVInstruction
from afterword.engine.batching.sequence import Sequence
from afterword.engine.batching.slots import Slot


class Span(msgspec.Struct, frozen=True):
    """Consecutive tokens of one sequence in a batch.

    The last ``rows`` of its ``tokens`` give rows of logits. Each row scores the next prompt token,
    except that the last row is sampled from if ``samples``. The last ``drafted`` tokens are a
    draft: the row before each of them is sampled from too, and tells whether the draft holds.
    A span that ``decodes`` follows all tokens but the last; others catch up with them.
    """

    sequence: Sequence
    slot: Slot
    start: int
    tokens: int
    rows: int
    samples: bool
    drafted: int = 0
    decodes: bool = False

    @property
    def draft(self) -> list[int]:
        """The drafted tokens."""
        end = self.start + self.tokens
        drafted: list[int] = self.slot.tokens[end - self.drafted : end].tolist()
        return drafted


class Step(msgspec.Struct, frozen=True):
    """What a runner does next: ``instructions``, then ``batch``. ``spans`` are in batch order."""

    instructions: SequenceOf[KVInstruction]
    spans: SequenceOf[Span]
    batch: Batch


def make_batch(spans: SequenceOf[Span]) -> Batch:
    """Returns the arrays of all spans, one after the other."""
    total = sum(span.tokens for span in spans)
    tokens = np.empty(total, np.int32)
    positions = np.empty(total, np.int32)
    slots = np.empty(total, np.int32)
    wanted = np.zeros(total, np.bool_)
    at = 0
    for span in spans:
        end = at + span.tokens
        tokens[at:end] = span.slot.tokens[span.start : span.start + span.tokens]
        if span.tokens == 1:
            positions[at] = span.start
        else:
            positions[at:end] = np.arange(span.start, span.start + span.tokens)
        slots[at:end] = span.slot.index
        wanted[end - span.rows : end] = True
        at = end
    return Batch(tokens, positions, slots, wanted)
