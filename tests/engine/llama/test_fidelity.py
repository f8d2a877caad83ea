"""Divergence against an oracle in float64; the passage and how it is cut."""

from __future__ import annotations

import numpy as np
import pytest

from afterword.engine.llama.fidelity import (
    SEGMENT_TOKENS,
    Comparison,
    log_softmax,
    passage,
    segments,
)
from afterword.engine.llama.verdict import PASSAGE_TOKENS


def test_divergence_is_that_of_float64() -> None:
    rng = np.random.default_rng(5)
    exact = (4 * rng.standard_normal((37, 1000))).astype(np.float32)
    ours = (exact + 0.05 * rng.standard_normal(exact.shape)).astype(np.float32)
    comparison = Comparison()
    for part in (slice(0, 20), slice(20, 37)):
        comparison.add(log_softmax(exact[part]), ours[part])
    found = comparison.result()
    p, q = (
        rows.astype(np.float64) - np.logaddexp.reduce(rows.astype(np.float64), axis=1)[:, None]
        for rows in (exact, ours)
    )
    assert found.kl == pytest.approx((np.exp(p) * (p - q)).sum(axis=1).mean(), rel=1e-3)
    assert found.agreement == pytest.approx((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    assert found.positions == 37


def test_a_model_does_not_differ_from_itself() -> None:
    rows = np.array([[0, 40, -300], [1, 1, 1]], np.float32)
    comparison = Comparison()
    comparison.add(log_softmax(rows), rows + 7)
    found = comparison.result()
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.agreement == 1


def test_the_passage_is_cut_into_whole_segments() -> None:
    ids = list(range(2 * PASSAGE_TOKENS))
    parts = list(segments(ids, 10_000))
    assert [i for part in parts for i in part] == ids[:PASSAGE_TOKENS]
    assert {len(part) for part in parts} == {SEGMENT_TOKENS}
    assert [len(part) for part in segments(ids[:25], 10)] == [10, 10, 5]
    # No tokenizer of a model in use makes fewer tokens of it than a fifth of its characters.
    assert len(passage()) > 4 * PASSAGE_TOKENS
