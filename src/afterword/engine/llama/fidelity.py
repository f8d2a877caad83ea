"""How far a model's next-token distributions are from those of another: pure arithmetic.

Kullback-Leibler divergence in nats, of the reference from the model, averaged over positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from afterword.engine.llama.verdict import PASSAGE_TOKENS, Fidelity

Rows: TypeAlias = npt.NDArray[np.float32]

SEGMENT_TOKENS = 500
_BLOCK = 16
"""Rows at once: they stay in the processor's cache."""


def passage() -> str:
    """The text that distributions are compared on: prose, questions, figures, code; our own."""
    return files(__package__).joinpath("passage.txt").read_text("utf-8")


def segments(ids: Sequence[int], room: int) -> Iterator[Sequence[int]]:
    """The first tokens in pieces, each to be read from an empty context of ``room`` tokens."""
    length = min(SEGMENT_TOKENS, room)
    for start in range(0, min(len(ids), PASSAGE_TOKENS), length):
        yield ids[start : min(start + length, PASSAGE_TOKENS)]


def log_softmax(rows: Rows) -> Rows:
    """Log-probabilities of rows of logits, as a new array; sums are made in float64."""
    found = np.empty_like(rows)
    for at in range(0, len(rows), _BLOCK):
        block = rows[at : at + _BLOCK]
        shifted = block - block.max(axis=1, keepdims=True)
        total = np.exp(shifted).sum(axis=1, dtype=np.float64, keepdims=True)
        found[at : at + _BLOCK] = shifted - np.log(total)
    return found


class Comparison:
    """Gathers rows of a model beside the reference's log-probabilities of the same positions."""

    def __init__(self) -> None:
        self._kl = 0.0
        self._agreed = self._positions = 0

    def add(self, reference: Rows, logits: Rows) -> None:
        """Rows [positions, vocabulary]: log-probabilities of the reference, logits of the model."""
        for at in range(0, len(logits), _BLOCK):
            exact = reference[at : at + _BLOCK]
            ours = log_softmax(logits[at : at + _BLOCK])
            self._kl += float((np.exp(exact) * (exact - ours)).sum(dtype=np.float64))
            self._agreed += int((exact.argmax(axis=1) == ours.argmax(axis=1)).sum())
        self._positions += len(logits)

    def result(self) -> Fidelity:
        """The means over all that was added."""
        return Fidelity(self._kl / self._positions, self._agreed / self._positions, self._positions)
