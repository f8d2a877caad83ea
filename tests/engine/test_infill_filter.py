"""The infill filter against a transcript of llama.cpp's sampler, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from afterword.core.job import InfillFilter, SamplingParams
from afterword.engine.infill_filter import sure_enough
from afterword.engine.sampler import Sampler
from support.drawing import draw_token
from support.examples import examples

PIECES = (b"a", b"ab", b"abc", b"b", b"ba", b" ", b"  ", b"\n", b"c", b"<end>", b"<eot>", b"")
ENDS = frozenset((9, 10))
FILTER = InfillFilter(PIECES, ENDS)


def at_least(value: float, threshold: float) -> bool:
    """Whether a value reaches a threshold, where the order of sums does not decide it."""
    assume(abs(value - threshold) > 1e-9)
    return value >= threshold


def llama_cpp(weights: dict[int, float]) -> list[int]:
    """The candidates that ``llama_sampler_infill_apply`` keeps; none for the end token alone."""
    total = sum(weights.values())
    data = sorted(([t, w / total, False] for t, w in weights.items()), key=lambda d: (-d[1], d[0]))
    p_eog = sum(p for t, p, _ in data if t in ENDS)
    if not at_least(sum(p for t, p, _ in data if t not in ENDS), 3 * p_eog * len(data)):
        return sorted(int(t) for t, _, _ in data if t in ENDS)
    for i0 in range(len(data)):
        for i1 in range(len(data)):
            if data[i0][2]:
                break
            if i0 == i1 or data[i1][2]:
                continue
            one, two = (b"" if data[i][0] in ENDS else PIECES[int(data[i][0])] for i in (i0, i1))
            if one and two[: len(one)] == one:
                dst, src = (i1, i0) if data[i1][1] > data[i0][1] else (i0, i1)
                data[dst][1] += data[src][1]
                data[src][1], data[src][2] = 0.0, True
    data = [d for d in data if d[0] in ENDS or at_least(d[1], 0.2)]
    texts = sum(t not in ENDS for t, _, _ in data)
    if not texts:
        return []
    total = sum(p for _, p, _ in data)
    return sorted(int(t) for t, p, _ in data if t in ENDS or at_least(p / total, 1 / (texts + 1)))


@given(
    st.dictionaries(
        st.integers(0, len(PIECES) - 1), st.floats(0.001, 1) | st.sampled_from([0.25, 1e-4]),
        min_size=1,
    )
)  # fmt: skip
@settings(max_examples=examples(500), deadline=None)
def test_F5_the_infill_filter_is_llama_cpps(weights: dict[int, float]) -> None:
    ids = np.array(sorted(weights), np.int64)
    found = sure_enough(ids, np.array([weights[i] for i in sorted(weights)]), FILTER)
    assert found.tolist() == llama_cpp(weights)


def draw(probabilities: dict[int, float], uniform: float) -> int:
    row = np.full(len(PIECES), -30, np.float32)
    for token, probability in probabilities.items():
        row[token] = np.log(probability)
    params = SamplingParams(top_k=8, infill=FILTER)
    return draw_token(Sampler(len(PIECES)), row, params, uniform)


def test_F5_only_what_is_sure_is_drawn() -> None:
    probabilities = {0: 0.3, 1: 0.3, 3: 0.25, 8: 0.15}
    drawn = {draw(probabilities, u) for u in np.linspace(0, 0.999, 50)}
    assert drawn == {0}
    assert {draw({0: 0.55, 3: 0.45}, u) for u in np.linspace(0, 0.999, 50)} == {0, 3}


@pytest.mark.parametrize(
    "probabilities",
    [{0: 0.6, 3: 0.3, 9: 0.1}, {0: 0.19, 3: 0.17, 5: 0.16, 7: 0.16, 8: 0.16, 11: 0.159, 9: 1e-4}],
)
def test_F5_without_a_sure_token_the_text_ends(probabilities: dict[int, float]) -> None:
    assert {draw(probabilities, u) for u in np.linspace(0, 0.999, 20)} == {9}


def test_F5_the_end_token_need_not_be_a_candidate() -> None:
    even = dict.fromkeys((0, 3, 5, 7, 8, 11), 0.15)
    assert draw({**even, 10: 1e-9}, 0.5) == 10


def test_without_end_tokens_the_text_goes_on() -> None:
    """No candidate is likely enough, and nothing can end the text: all of them are left."""
    letters = [bytes([letter]) for letter in b"abcdefgh"]
    params = SamplingParams(top_k=6, infill=InfillFilter(letters, frozenset()))
    sampler, row = Sampler(len(letters)), np.zeros(len(letters), np.float32)
    assert {draw_token(sampler, row, params, u / 20) for u in range(20)} == set(range(6))
