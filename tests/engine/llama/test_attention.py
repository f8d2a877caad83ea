"""The patched attention agrees with plain float32 attention and is batch invariant."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from afterword.engine.batching.probe import batch_difference
from afterword.engine.batching.runner import Batch, Fork, Trim
from afterword.engine.llama.binding import convert
from afterword.engine.llama.context import ATTENTION_BY_ROWS, exponentials
from afterword.engine.llama.runner import LlamaRunner
from support.reference import Reference
from support.runners import open_runner
from support.tiny_gguf import USUAL, Shape, make_gguf

pytestmark = pytest.mark.slow
TOKENS = 700
"""More than ten tiles of 64, and more than the 512 tokens at which llama.cpp splits a context."""


# Heads too narrow for the kernel of few rows; then three and four that share keys and values.
SHAPES = (USUAL, Shape(96, 3, 1), Shape(128, 4, 1))


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"{shape.heads}-heads")
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    return make_gguf(path, context=1024, shape=request.param)


def runner(path: Path, *, threads: int = 2) -> AbstractContextManager[LlamaRunner]:
    return open_runner(path, slots=4, slot_tokens=1024, threads=threads)


def part(slot: int, ids: npt.NDArray[np.int32], start: int) -> Batch:
    count = len(ids)
    return Batch(
        ids,
        np.arange(start, start + count, dtype=np.int32),
        np.full(count, slot, np.int32),
        np.ones(count, np.bool_),
    )


def together(*parts: Batch) -> Batch:
    return Batch(
        *(
            np.concatenate([getattr(each, name) for each in parts])
            for name in ("tokens", "positions", "slots", "wanted")
        )
    )


def test_the_library_is_patched() -> None:
    assert ATTENTION_BY_ROWS


def test_rows_are_those_of_plain_attention(tiny: Path, tmp_path: Path) -> None:
    """Weights are in float32, so that only attention rounds."""
    full = tmp_path / "f32.gguf"
    convert(tiny, full, "f32", threads=2)
    plain = Reference(full, plain=True)
    ids = plain.tokenize("The quick brown fox jumps over the lazy dog. " * 12)[:500]
    expected = plain.log_softmax(ids)
    plain.close()
    with runner(full) as made:
        rows = made.decode(part(0, np.array(ids, np.int32), 0)).astype(np.float64)
    got = rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
    # Keys and values are rounded to 16 bits, and logits go up to 58.
    assert np.abs(got - expected).max() < 0.1


def test_a_row_is_identical_in_any_batch(tiny: Path) -> None:
    random = np.random.default_rng(0)
    with runner(tiny) as made:
        ids = random.integers(0, made.vocabulary, TOKENS).astype(np.int32)
        alone = {}
        for start, end in ((0, 500), (500, 690), *((at, at + 1) for at in range(690, TOKENS))):
            rows = made.decode(part(0, ids[start:end], start))
            alone.update({start + i: row.copy() for i, row in enumerate(rows)})
        made.apply([Trim(0, 0)])
        at, lengths, step = 0, [0, 0, 0], 0
        while at < TOKENS:
            mine = min((1, 3, 63, 64, 65, 100, 2)[step % 7], TOKENS - at)
            parts = []
            for slot, length in enumerate(lengths):
                more = (1, 5, 70)[(slot + step) % 3]
                noise = random.integers(0, made.vocabulary, more).astype(np.int32)
                parts.append(part(slot, noise, length))
                lengths[slot] += more
            rows = made.decode(together(*parts, part(3, ids[at : at + mine], at)))[-mine:]
            for offset, row in enumerate(rows):
                assert np.array_equal(row, alone[at + offset])
            at, step = at + mine, step + 1


def test_rows_are_identical_for_many_batch_sizes(tiny: Path) -> None:
    """There are more small sizes than cached graphs; some batches want only their last row."""
    random = np.random.default_rng(4)
    with runner(tiny) as made:
        ids = random.integers(0, made.vocabulary, TOKENS).astype(np.int32)
        expected = np.concatenate([made.decode(part(0, ids[:350], 0)).copy(),
                                   made.decode(part(0, ids[350:], 350)).copy()])  # fmt: skip
        for slot in (1, 2):
            at = 0
            while at < TOKENS:
                size = min(int(random.choice((1, 2, 3, 5, 8, 13, 14, 15, 16, 17, 31, 32, 33))),
                           TOKENS - at)  # fmt: skip
                batch = part(slot, ids[at : at + size], at)
                last_only = bool(random.integers(0, 2))
                if last_only:
                    batch.wanted[:-1] = False
                rows = made.decode(batch)
                at += size
                assert np.array_equal(rows, expected[at - (1 if last_only else size) : at])


def test_sequences_of_unequal_lengths_are_computed_together(tiny: Path) -> None:
    """Their slots are not neighbours, and their contexts have different lengths."""
    random = np.random.default_rng(1)
    lengths = {0: (300, 70), 2: (0, 13), 3: (65, 1)}
    with runner(tiny) as made:
        assert made.ragged
        begins, ends, alone = [], [], []
        for slot, (before, count) in lengths.items():
            ids = random.integers(0, made.vocabulary, before + count).astype(np.int32)
            if before:
                begins.append(part(slot, ids[:before], 0))
            ends.append(part(slot, ids[before:], before))
        for begin in begins:
            made.decode(begin)
        for end in ends:
            alone.append(made.decode(end).copy())
            made.apply([Trim(int(end.slots[0]), int(end.positions[0]))])
        assert np.array_equal(made.decode(together(*ends)), np.concatenate(alone))


@pytest.mark.parametrize("direct", [True, False])
def test_a_fork_continues_like_its_source(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, *, direct: bool
) -> None:
    """Cells are copied from stream to stream, or through a saved state without our patch."""
    if not direct:
        monkeypatch.setattr("afterword.engine.llama.context._fork", None)
    with runner(tiny) as made:
        ids = np.random.default_rng(2).integers(0, made.vocabulary, 400).astype(np.int32)
        expected = made.decode(part(0, ids, 0)).copy()
        made.decode(part(2, ids[::-1].copy(), 0))
        made.apply([Trim(2, 0), Fork(0, 2, 250), Fork(2, 3, 100)])
        assert np.array_equal(made.decode(part(2, ids[250:300], 250)), expected[250:300])
        assert np.array_equal(made.decode(part(3, ids[100:], 100)), expected[100:])
        made.apply([Trim(0, 399)])
        assert np.array_equal(made.decode(part(0, ids[399:], 399)), expected[399:])


def test_exponentials_of_the_library_are_exponentials() -> None:
    random = np.random.default_rng(3)
    for size in (1, 15, 16, 1000, 49_152):
        row = (8 * random.standard_normal(size)).astype(np.float32)
        row[random.random(size) < 0.1] = -np.inf
        row[0] = 3
        exact = np.exp(row.astype(np.float64) - row.max())
        out = row.copy()
        total = exponentials(out, float(row.max()), out)
        assert total == pytest.approx(exact.sum(), rel=1e-6)
        assert out == pytest.approx(exact, rel=1e-5, abs=1e-38)
        assert not out[row == -np.inf].any()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_probe_confirms_batch_invariance(tiny: Path, threads: int) -> None:
    with runner(tiny, threads=threads) as made:
        assert batch_difference(made) == 0
