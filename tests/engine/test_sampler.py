"""The sampler against a float64 oracle that sorts everything."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from afterword.core.draws import uniform
from afterword.core.job import SamplingParams
from afterword.engine.changes import Bias
from afterword.engine.filters import fewest
from afterword.engine.history import History
from afterword.engine.llama.context import exponentials as embedded_exponentials
from afterword.engine.llama.native_sampler import make_sampler
from afterword.engine.row_query import NoNumbersError, NothingToDrawError, RowQuery
from afterword.engine.sampler import Exponentials, Sampler, exponentials
from support.drawing import draw_token
from support.examples import examples


def native_sampler(size: int) -> Sampler:
    """The sampler of the embedded engine, on two threads."""
    return make_sampler(size, 2)


SIZES = (1, 3, 255, 256, 257, 1000, 5000)


def row_of(size: int, seed: int, *, flat: bool = False) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    scale = 0.01 if flat else 4.0
    row = rng.normal(0, scale, size).astype(np.float32)
    # Ties are where a sort may go wrong.
    row[rng.integers(0, size, size // 5)] = row[0]
    return row


def history_of(params: SamplingParams, *tokens: int, prompt: Sequence[int] = ()) -> History:
    history = History(np.array(prompt, np.int32), params)
    for token in tokens:
        history.accept(token)
    return history


def typical(
    p: npt.NDArray[np.float64], order: npt.NDArray[np.int64], typical_p: float
) -> npt.NDArray[np.int64]:
    """Returns the locally typical tokens of ``order``, likeliest first."""
    own = p[order] / p[order].sum()
    information = -np.log(own)
    entropy = (own * information).sum()
    nearest = sorted(range(len(order)), key=lambda i: (abs(information[i] - entropy), order[i]))
    mass, kept = 0.0, []
    for i in nearest:
        kept.append(i)
        mass += own[i]
        if mass > typical_p:
            break
    return order[sorted(kept)]


def oracle(row: npt.NDArray[np.float32], params: SamplingParams) -> dict[int, float]:
    """Returns the probability of each token that survives, by sorting in float64."""
    logits = row.astype(np.float64) / params.temperature
    p = np.exp(logits - logits.max())
    order = np.lexsort((np.arange(len(p)), -p))
    if params.top_k:
        order = order[: params.top_k]
    if params.typical_p < 1:
        order = typical(p, order, params.typical_p)
    if params.top_p < 1:
        cumulative = np.cumsum(p[order])
        order = order[: int(np.searchsorted(cumulative, params.top_p * cumulative[-1])) + 1]
    kept = [i for i in order if p[i] >= params.min_p * p[order].max()]
    if params.xtc_probability and params.xtc_threshold <= 0.5:
        likely = [i for i in kept if p[i] >= params.xtc_threshold * p[kept].sum()]
        kept = kept[max(len(likely) - 1, 0) :]
    total = p[kept].sum()
    return {int(i): float(p[i] / total) for i in kept}


@given(
    size=st.sampled_from(SIZES),
    seed=st.integers(0, 2**32 - 1),
    temperature=st.sampled_from((0.3, 1.0, 2.0)),
    top_k=st.sampled_from((0, 1, 5, 300)),
    top_p=st.sampled_from((0.1, 0.5, 0.95, 1.0)),
    min_p=st.sampled_from((0.0, 0.05, 0.5)),
    flat=st.booleans(),
    u=st.floats(0, 1, exclude_max=True),
)
@example(  # one more token at the edge lowers the probability of each of the others
    size=255, seed=275, temperature=2.0, top_k=5, top_p=0.95, min_p=0.0, flat=False, u=0.75,
)  # fmt: skip
@settings(max_examples=examples(300), deadline=None)
def test_draw_is_the_inverse_cdf_of_what_survives(
    size: int,
    seed: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    flat: bool,
    u: float,
) -> None:
    row = row_of(size, seed, flat=flat)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    before = row.copy()
    token = draw_token(Sampler(size), row, params, u)
    assert (row == before).all()
    kept = oracle(row, params)
    # Float32 rounding may move a token across the edge of the nucleus or of min_p.
    edge = oracle(row, SamplingParams(
        temperature=temperature, top_k=top_k, top_p=min(1.0, top_p * 1.001), min_p=min_p * 0.999,
    ))  # fmt: skip
    assert token in edge
    spans = [
        (sum(p for i, p in survivors.items() if i < token), survivors[token])
        for survivors in (kept, edge)
        if token in survivors
    ]
    assert any(below - 2e-3 <= u <= below + own + 2e-3 for below, own in spans)


@given(
    size=st.sampled_from((1, 3, 257, 1000)),
    seed=st.integers(0, 2**32 - 1),
    temperature=st.sampled_from((0.5, 1.0)),
    top_k=st.sampled_from((0, 1, 40)),
    typical_p=st.sampled_from((0.2, 0.9, 1.0)),
    top_p=st.sampled_from((0.0, 0.8, 1.0)),
    min_p=st.sampled_from((0.0, 0.1)),
    threshold=st.sampled_from((0.0, 0.02, 0.3, 0.5, 0.6)),
    second=st.sampled_from((0.0, 0.49, 0.5, 0.99)),
    u=st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=examples(300), deadline=None)
def test_typical_p_and_xtc_follow_their_definitions(
    size: int, seed: int, temperature: float, top_k: int, typical_p: float, top_p: float,
    min_p: float, threshold: float, second: float, u: float,
) -> None:  # fmt: skip
    """Rows without near ties: there float32 and float64 keep the same tokens."""
    rng = np.random.default_rng(seed)
    row = (np.float32(3) * rng.permutation(np.geomspace(0.05, 5, size))).astype(np.float32)
    params = SamplingParams(
        temperature=temperature, top_k=top_k, typical_p=typical_p, top_p=top_p, min_p=min_p,
        xtc_probability=0.5, xtc_threshold=threshold,
    )  # fmt: skip
    token = draw_token(Sampler(size), row, params, u, second=second)
    if second >= params.xtc_probability:
        params = msgspec.structs.replace(params, xtc_probability=0.0)
    kept = oracle(row, params)
    assert token in kept
    below = sum(p for i, p in kept.items() if i < token)
    assert below - 2e-3 <= u <= below + kept[token] + 2e-3


def test_only_allowed_ids_are_drawn_whatever_else_is_asked() -> None:
    row = np.array([9, 8, 1, 0], np.float32)
    allowed = np.array([2, 3], np.int64)
    sampler = Sampler(4)
    assert draw_token(sampler, row, SamplingParams(temperature=0), 0, allowed=allowed) == 2
    drawn = {draw_token(sampler, row, SamplingParams(), i / 50, allowed=allowed) for i in range(50)}
    assert drawn == {2, 3}
    forced = Bias.of(((0, 100.0), (3, 100.0)))
    assert draw_token(sampler, row, SamplingParams(), 0.1, allowed=allowed, bias=forced) == 3
    with pytest.raises(NothingToDrawError):
        draw_token(sampler, row, SamplingParams(), 0, allowed=allowed, banned=allowed)


@pytest.mark.slow
@pytest.mark.parametrize("make", [Sampler, native_sampler])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("params", [
    SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(top_p=0.5),
    SamplingParams(temperature=0.7), SamplingParams(min_p=0.05), SamplingParams(top_k=20),
    SamplingParams(typical_p=0.8), SamplingParams(xtc_probability=1.0, xtc_threshold=0.01),
])  # fmt: skip
def test_drawn_tokens_pass_a_chi_square(
    make: Callable[[int], Sampler], params: SamplingParams, flat: bool
) -> None:
    size, draws, at_once = 300, 20_000, 50
    row = row_of(size, 7, flat=flat)
    rows, sampler = np.tile(row, (at_once, 1)), make(size)
    counts: Counter[int] = Counter()
    for first in range(0, draws, at_once):
        asked = [RowQuery(i, params, uniform(11, 0, first + i)) for i in range(at_once)]
        counts.update(result.token for result in sampler.answer(rows, asked))
    expected = oracle(row, params)
    assert set(counts) <= set(expected)
    common = {t: p for t, p in expected.items() if p * draws >= 5}
    rest = draws - sum(counts[t] for t in common)
    rest_expected = max(1e-9, draws - sum(p * draws for p in common.values()))
    statistic = sum((counts[t] - p * draws) ** 2 / (p * draws) for t, p in common.items())
    if rest_expected >= 5:
        statistic += (rest - rest_expected) ** 2 / rest_expected
    freedom = len(common)
    # Wilson and Hilferty's approximation of the 1 - 1e-6 quantile.
    limit = freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit


@given(
    size=st.sampled_from((1, 100, 2048, 2049, 20_000)),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from((0.0, 0.01, 1.0, 4.0, 30.0)),
    share=st.sampled_from((1e-9, 0.5, 0.95, 0.999999, 1.0)),
)
@settings(max_examples=examples(100), deadline=None)
def test_fewest_agrees_with_a_sort(size: int, seed: int, scale: float, share: float) -> None:
    row = row_of(size, seed) * np.float32(scale / 4)
    weights = np.exp(row - row.max())
    mass = np.sort(weights.astype(np.float64))[::-1].cumsum()
    goal = share * mass[-1]
    marked = fewest(weights, goal)
    order = np.lexsort((np.arange(size), -weights))
    assert set(order[: marked.sum()]) == set(np.flatnonzero(marked))
    # Sums in another order may differ in their last bits.
    room = 1e-12 * mass[-1]
    count = int(marked.sum())
    assert mass[count - 1] >= goal - room
    assert count == 1 or mass[count - 2] < goal + room


def test_fewest_of_nothing_is_the_heaviest() -> None:
    """With top_p 0 behind typical_p, whose likeliest token may be far below 1."""
    weights = np.linspace(0.1, 0.2, 5000, dtype=np.float32)
    assert np.flatnonzero(fewest(weights, 0.0)).tolist() == [4999]


@given(size=st.sampled_from(SIZES), seed=st.integers(0, 2**32 - 1), k=st.integers(0, 20))
@settings(max_examples=examples(200), deadline=None)
def test_top_is_the_head_of_a_stable_sort(size: int, seed: int, k: int) -> None:
    row = row_of(size, seed)
    expected = np.lexsort((np.arange(size), -row))[: min(k, size)]
    assert Sampler(size).top(row, k).tolist() == expected.tolist()


@given(size=st.sampled_from(SIZES), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=examples(100), deadline=None)
def test_normaliser_is_log_sum_exp(size: int, seed: int) -> None:
    row = row_of(size, seed)
    exact = np.logaddexp.reduce(row.astype(np.float64))
    assert Sampler(size).normaliser(row) == pytest.approx(exact, abs=2e-6)


def test_greedy_takes_the_lowest_id_on_a_tie() -> None:
    row = np.array([0, 3, 3, 1], np.float32)
    assert draw_token(Sampler(4), row, SamplingParams(temperature=0), 0.9) == 1
    assert draw_token(Sampler(4), row, SamplingParams(top_p=0), 0.9) == 1


def test_bias_bans_forces_and_adds() -> None:
    row = np.array([50, 3, 2, 1], np.float32)
    greedy = SamplingParams(temperature=0)
    sampler = Sampler(4)
    assert draw_token(sampler, row, greedy, 0, bias=Bias.of(((0, -100.0),))) == 1
    assert draw_token(sampler, row, greedy, 0, bias=Bias.of(((3, 100.0),))) == 3
    assert draw_token(sampler, row, greedy, 0, bias=Bias.of(((0, -48.5),))) == 1
    for i in range(200):
        params = SamplingParams(temperature=2)
        assert draw_token(sampler, row, params, i / 200, bias=Bias.of(((2, 100.0),))) == 2


def test_everything_banned_is_an_error() -> None:
    row = np.zeros(2, np.float32)
    everything = Bias.of(((0, -100.0), (1, -100.0)))
    for params in (SamplingParams(temperature=0), SamplingParams()):
        with pytest.raises(NothingToDrawError):
            draw_token(Sampler(2), row, params, 0.5, bias=everything)


def test_penalties_follow_openais_formula() -> None:
    row = np.array([5.0, 4.9, 0], np.float32)
    params = SamplingParams(temperature=0, frequency_penalty=0.04, presence_penalty=0.05)
    assert draw_token(Sampler(3), row, params, 0, history=history_of(params, 0)) == 0
    assert draw_token(Sampler(3), row, params, 0, history=history_of(params, 0, 0)) == 1


def test_banned_ids_win_over_forced_ones() -> None:
    row = np.array([1, 2, 3], np.float32)
    banned = np.array([2], np.int64)
    token = draw_token(
        Sampler(3),
        row,
        SamplingParams(temperature=0),
        0,
        bias=Bias.of(((2, 100.0),)),
        banned=banned,
    )
    assert token == 1


def test_draws_depend_on_all_three_keys_and_fill_the_unit_interval() -> None:
    keys = [(s, c, p) for s in (-1, 0, 1, 2**63 - 1) for c in range(5) for p in range(50)]
    values = [uniform(*key) for key in keys]
    assert len(set(values)) == len(values)
    assert all(0 <= v < 1 for v in values)
    assert abs(sum(values) / len(values) - 0.5) < 0.03
    assert uniform(3, 4, 5) == uniform(3, 4, 5)


@pytest.mark.parametrize("vocabulary", [5, 3000])
@pytest.mark.parametrize("wrong", [[np.nan], [np.inf], [np.nan, -np.inf], "all"])
@pytest.mark.parametrize("kernel", [exponentials, embedded_exponentials])
def test_rows_with_nan_or_infinity_are_found_everywhere(
    vocabulary: int, wrong: list[float] | str, kernel: Exponentials
) -> None:
    """However a token is drawn or scored, and wherever in the row the value stands."""
    rng = np.random.default_rng(3)
    penalised = SamplingParams(presence_penalty=1)
    banned = Bias.of(((1, -100.0), (vocabulary - 1, -100.0)))
    forced = Bias.of(((0, 100.0),))
    for at in (1, vocabulary // 2, vocabulary - 1):
        row = rng.normal(0, 3, vocabulary).astype(np.float32)
        if wrong == "all":
            row[:] = -np.inf
        else:
            row[at - len(wrong) + 1 : at + 1] = wrong
        sampler = Sampler(vocabulary, kernel)
        for params in (
            SamplingParams(temperature=0), SamplingParams(), SamplingParams(temperature=0.3),
            SamplingParams(top_k=3), SamplingParams(top_p=0.5), SamplingParams(min_p=0.2),
        ):  # fmt: skip
            for bias in (None, banned, forced):
                with pytest.raises(NoNumbersError):
                    draw_token(sampler, row, params, 0.5, bias=bias)
            with pytest.raises(NoNumbersError):
                draw_token(sampler, row, params, 0.5, history=history_of(penalised, at, at))
            with pytest.raises(NoNumbersError):
                draw_token(sampler, row, params, 0.5, banned=np.array([at], np.int64))
        for k in (0, 1, 2, 5, 20):
            with pytest.raises(NoNumbersError):
                sampler.normaliser(row, sampler.top(row, k))


def test_minus_infinity_rules_a_token_out_and_is_no_error() -> None:
    row = np.full(3000, -np.inf, np.float32)
    row[[7, 2999]] = 1.0, 0.0
    sampler = Sampler(3000)
    assert draw_token(sampler, row, SamplingParams(temperature=0), 0) == 7
    assert draw_token(sampler, row, SamplingParams(), 0.999) == 2999
    with pytest.raises(NothingToDrawError):
        draw_token(sampler, row, SamplingParams(), 0, bias=Bias.of(((7, -100.0), (2999, -100.0))))
    assert sampler.normaliser(row, sampler.top(row, 2)) == pytest.approx(np.log(1 + np.e))
