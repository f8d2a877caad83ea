"""The sampler in native code gives the bits of the one in numpy, whatever else is in the step."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from afterword.core.draws import uniform
from afterword.core.job import InfillFilter, SamplingParams
from afterword.engine.llama.binding import CHANGES
from afterword.engine.llama.context import exponentials, idle_pool
from afterword.engine.llama.native_sampler import NativeSampler, make_sampler
from afterword.engine.row_query import NoNumbersError, RowQuery, RowResult
from afterword.engine.sampler import Sampler
from support.examples import examples

Rows = npt.NDArray[np.float32]

pytestmark = pytest.mark.skipif(not CHANGES, reason="an unchanged library")

SIZES = (1, 7, 8, 255, 256, 257, 1000, 5000, 20_000)
ROWS = 6
SHAPES = ("random", "flat", "peaked", "wide", "equal", "ties", "minus infinity", "broken", "none")

params = st.builds(
    SamplingParams,
    temperature=st.sampled_from((0.0, 1e-9, 0.3, 0.8, 1.0, 2.0)),
    top_k=st.sampled_from((0, 0, 1, 5, 300, 4000, 2**31, 2**63 - 1)),
    top_p=st.sampled_from((0.0, 0.1, 0.5, 0.95, 0.9999, 1.0, 1.0)),
    min_p=st.sampled_from((0.0, 0.0, 0.05, 0.5, 1.0)),
    typical_p=st.sampled_from((0.2, 0.9, 1.0, 1.0, 1.0)),
    xtc_probability=st.sampled_from((0.0, 0.0, 0.5, 1.0)),
    xtc_threshold=st.sampled_from((0.0, 0.02, 0.3, 0.5, 0.6)),
)
numbers = st.floats(0, 1, exclude_max=True)


def row_of(shape: str, size: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    scale = {"flat": 0.01, "equal": 0.0, "wide": 40.0}.get(shape, 3.0)
    row = rng.normal(0, scale, size).astype(np.float32)
    match shape:
        case "peaked":
            row[rng.integers(0, size)] += 20
        case "ties":
            row = np.round(row)
        case "two values":
            row = np.where(row > 0, np.float32(0), np.float32(-3))
        case "minus infinity":
            row[rng.random(size) < 0.5] = -np.inf
            row[rng.integers(0, size)] = 0
        case "broken":
            row[rng.integers(0, size)] = rng.choice([np.nan, np.inf])
        case "none":
            row[:] = -np.inf
    return row


@st.composite
def queries(draw: st.DrawFn, size: int) -> list[tuple[RowQuery, bool]]:
    """A query of each row, and whether the row is changed before."""
    asked = []
    for row in range(ROWS):
        top = draw(st.sampled_from((None, 0, 1, 5, 200)))
        if draw(st.integers(0, 4)) == 0:
            token = draw(st.integers(0, size - 1))
            asked.append((RowQuery(row, token=token, top=top or 0, ranked=True), False))
        else:
            query = RowQuery(row, draw(params), draw(numbers), draw(numbers), top=top)
            asked.append((query, draw(st.booleans())))
    return asked


def answers(
    sampler: Sampler, rows: Rows, asked: Sequence[tuple[RowQuery, bool]]
) -> list[RowResult]:
    banned = np.array([0, rows.shape[1] - 1])
    changed = [
        msgspec.structs.replace(query, changed=sampler.change(rows[query.row], banned=banned))
        if changes
        else query
        for query, changes in asked
    ]
    return sampler.answer(rows, changed)


def bits(result: RowResult) -> tuple[object, ...]:
    return (
        result.token, result.normaliser, result.logprob, result.rank, type(result.error),
        result.top_ids.tolist(), result.top_logprobs.tobytes(),
    )  # fmt: skip


@given(data=st.data(), size=st.sampled_from(SIZES), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=examples(300), deadline=None)
def test_results_are_those_of_numpy_bit_for_bit(data: st.DataObject, size: int, seed: int) -> None:
    shapes = [data.draw(st.sampled_from(SHAPES)) for _ in range(ROWS)]
    rows = np.stack([row_of(shape, size, seed + i) for i, shape in enumerate(shapes)])
    asked = data.draw(queries(size))
    before = rows.copy()
    with np.errstate(invalid="ignore"):
        expected = [bits(each) for each in answers(Sampler(size, exponentials), rows, asked)]
    for threads in (1, 2, 3):
        found = answers(make_sampler(size, threads), rows, asked)
        assert [bits(each) for each in found] == expected
    assert np.array_equal(rows, before, equal_nan=True)


LARGE_SHAPES = ("random", "flat", "wide", "equal", "ties", "two values", "minus infinity")


@given(
    size=st.sampled_from((2049, 20_000, 49_152)),
    shape=st.sampled_from(LARGE_SHAPES),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from((0.1, 0.3, 1.0, 2.0)),
    u=numbers,
)
@example(size=49_152, shape="random", seed=0, scale=0.3, u=0.999999999)
@settings(max_examples=examples(60), deadline=None)
def test_large_vocabularies_are_drawn_from_as_by_numpy(
    size: int, shape: str, seed: int, scale: float, u: float
) -> None:
    """Native code sorts only the weights near the edge of the nucleus; numpy sorts them all."""
    row = row_of(shape, size, seed)[None] * np.float32(scale)
    for sampling in (
        SamplingParams(), SamplingParams(top_p=0.5), SamplingParams(top_p=0.95),
        SamplingParams(top_p=0.001), SamplingParams(top_p=0.999), SamplingParams(top_p=0.999999),
        SamplingParams(top_p=0.9, min_p=0.01), SamplingParams(top_p=0.9, typical_p=0.9),
        SamplingParams(top_p=0.9, xtc_probability=1, xtc_threshold=0.0001),
        SamplingParams(temperature=0.7, top_p=0.99), SamplingParams(typical_p=0.9),
        SamplingParams(typical_p=0.5, top_p=0), SamplingParams(min_p=0.02),
        SamplingParams(xtc_probability=1, xtc_threshold=0.01), SamplingParams(top_k=3000),
    ):  # fmt: skip
        query = [RowQuery(0, sampling, u, 0.3, top=20)]
        expected = Sampler(size, exponentials).answer(row, query)
        assert bits(make_sampler(size, 1).answer(row, query)[0]) == bits(expected[0])


def test_a_row_is_the_same_alone_and_in_any_batch() -> None:
    size, count = 5000, 64
    rng = np.random.default_rng(5)
    rows = rng.normal(0, 3, (count, size)).astype(np.float32)
    sampler = make_sampler(size, 2)
    kinds = (SamplingParams(temperature=0), SamplingParams(top_p=0.9), SamplingParams(min_p=0.1))
    asked = [RowQuery(i, kinds[i % 3], uniform(7, 0, i), top=i % 7) for i in range(count)]
    together = [bits(result) for result in sampler.answer(rows, asked)]
    alone = [bits(sampler.answer(rows, [query])[0]) for query in asked]
    order = rng.permutation(count).tolist()
    shuffled = [bits(each) for each in sampler.answer(rows, [asked[i] for i in order])]
    assert together == alone
    assert shuffled == [together[i] for i in order]
    # The rows lie elsewhere in a step that has others.
    part = [RowQuery(i, q.params, q.uniform, top=q.top) for i, q in enumerate(asked[20:29])]
    assert [bits(each) for each in sampler.answer(rows[20:29], part)] == together[20:29]


def test_changed_rows_are_drawn_from_and_the_models_own_are_scored() -> None:
    rows = np.array([[5.0, 1.0, 0.0, 2.0]], np.float32)
    sampler = make_sampler(4, 1)
    changed = sampler.change(rows[0], banned=np.array([0]))
    greedy = SamplingParams(temperature=0)
    (result,) = sampler.answer(rows, [RowQuery(0, greedy, changed=changed, top=2)])
    assert result.token == 3
    assert result.top_ids.tolist() == [0, 3]
    assert result.normaliser == pytest.approx(np.logaddexp.reduce(rows[0].astype(np.float64)))


def test_there_is_room_for_changed_rows_again_after_an_answer() -> None:
    rows = np.zeros((1, 4), np.float32)
    sampler = make_sampler(4, 1)
    numbers = []
    while not sampler.full:
        numbers.append(sampler.change(rows[0], banned=np.array([0])))
    assert numbers == list(range(len(numbers)))
    sampler.answer(rows, [])
    assert not sampler.full


def test_the_infill_filter_is_asked_in_the_order_of_the_others() -> None:
    rows = np.array([[0, 4, 0, 0], [5, 0, 0, 0], [0, 0, 0, 6]], np.float32)
    infill = InfillFilter([b"a", b"b", b"c", b"<end>"], frozenset({3}))
    filtered = SamplingParams(top_k=3, infill=infill)
    greedy = SamplingParams(temperature=0)
    asked = [RowQuery(0, greedy), RowQuery(1, filtered, 0.5), RowQuery(2, greedy)]
    assert [result.token for result in make_sampler(4, 2).answer(rows, asked)] == [1, 0, 3]


def test_rows_that_are_not_contiguous_are_refused() -> None:
    rows = np.zeros((4, 8), np.float32)[:, ::2]
    with pytest.raises(AssertionError):
        NativeSampler(4, 1).answer(rows, [RowQuery(0, SamplingParams())])


def test_a_broken_row_is_an_error_of_its_own() -> None:
    rows = np.zeros((3, 300), np.float32)
    rows[1, 299] = np.nan
    asked = [RowQuery(i, SamplingParams(), 0.5, top=1) for i in range(3)]
    first, broken, last = make_sampler(300, 2).answer(rows, asked)
    assert isinstance(broken.error, NoNumbersError)
    assert first.error is None
    assert bits(first) == bits(last)


def test_rows_are_drawn_alone_while_a_batch_is_computed() -> None:
    """Another model's step is not waited for, and changes nothing."""
    rows = np.random.default_rng(2).normal(0, 3, (16, 20_000)).astype(np.float32)
    asked = [RowQuery(i, SamplingParams(top_p=0.9), uniform(3, 0, i), top=3) for i in range(16)]
    sampler = make_sampler(20_000, 2)
    expected = [bits(each) for each in sampler.answer(rows, asked)]
    with idle_pool(2):
        assert [bits(each) for each in sampler.answer(rows, asked)] == expected
        with idle_pool(2) as pool:
            assert pool is None
