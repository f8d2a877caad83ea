"""Penalties over the tokens of a choice, against plain float64 versions of their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterword.core.job import Job, Repetition, SamplingParams
from afterword.core.limits import MOST_TAIL_TOKENS
from afterword.engine import history as module
from afterword.engine.batching.sequence import Request
from afterword.engine.history import History
from support.examples import examples

VOCABULARY = 8
TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=40)
BREAKERS: tuple[dict[int, tuple[tuple[int, ...], ...]], ...] = (
    {},
    {3: ((),)},
    {2: ((1,), (1, 1)), 3: ((0,),)},
)


def penalised(
    prompt: list[int], generated: list[int], params: SamplingParams, row: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    history = History(np.array(prompt, np.int32), params)
    for token in generated:
        # What a look ahead accepts is forgotten with the copy.
        history.copy().accept((token + 1) % VOCABULARY)
        history.accept(token)
    logits = row.copy()
    history.copy().penalise(logits)
    return logits


def row_of(seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)


@given(prompt=TOKENS, generated=TOKENS, seed=st.integers(0, 99))
@settings(max_examples=examples(100), deadline=None)
def test_repetition_penalty_comes_before_presence_and_frequency(
    prompt: list[int], generated: list[int], seed: int
) -> None:
    """Over the set of ids in prompt and choice; the others count the choice alone (R13, R17)."""
    row = row_of(seed)
    expected = row.astype(np.float64)
    for token in set(prompt) | set(generated):
        expected[token] = expected[token] / 1.3 if expected[token] > 0 else expected[token] * 1.3
    for token in set(generated):
        expected[token] -= 0.5 * generated.count(token) + 0.25
    params = SamplingParams(repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.25)
    got = penalised(prompt, generated, params, row)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@given(prompt=TOKENS, generated=TOKENS, window=st.sampled_from((1, 2, 5, 30, 2**63 - 1)))
@settings(max_examples=examples(200), deadline=None)
def test_a_range_makes_the_penalty_see_the_last_tokens_alone(
    prompt: list[int], generated: list[int], window: int
) -> None:
    row = row_of(2)
    expected = row.astype(np.float64)
    for token in set([*prompt, *generated][-window:]):
        expected[token] = expected[token] / 1.3 if expected[token] > 0 else expected[token] * 1.3
    params = SamplingParams(repetition_penalty=1.3, repetition_window=window)
    got = penalised(prompt, generated, params, row)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def dry(tokens: list[int], repetition: Repetition) -> dict[int, float]:
    """Returns what each token loses, by comparing every pair of places."""
    tokens = tokens[-repetition.window :] if repetition.window else []
    limit = len(tokens)
    for i in range(len(tokens)):
        at = len(tokens) - 1 - i
        after = tokens[at + 1 :]
        met = [
            len(tail)
            for tail in repetition.breakers.get(tokens[at], ())
            if len(tail) <= i and after[: len(tail)] == list(tail)
        ]
        if met:
            limit = i - max(met)
            break
    longest: dict[int, int] = {}
    if len(tokens) <= repetition.allowed_length or limit < repetition.allowed_length:
        return {}
    for end in range(len(tokens) - 1):
        n = 0
        while n <= end and n < limit and tokens[end - n] == tokens[-1 - n]:
            n += 1
        if n >= repetition.allowed_length:
            following = tokens[end + 1]
            longest[following] = max(longest.get(following, 0), n)
    return {
        token: repetition.multiplier * repetition.base ** (n - repetition.allowed_length)
        for token, n in longest.items()
        if () not in repetition.breakers.get(token, ())
    }


@given(
    prompt=TOKENS,
    generated=st.lists(st.integers(0, 3), max_size=40),
    allowed_length=st.integers(0, 4),
    window=st.sampled_from((0, 1, 5, 30, 1000)),
    breakers=st.sampled_from(BREAKERS),
)
@settings(max_examples=examples(400), deadline=None)
def test_dry_follows_its_definition(
    prompt: list[int],
    generated: list[int],
    allowed_length: int,
    window: int,
    breakers: dict[int, tuple[tuple[int, ...], ...]],
) -> None:
    repetition = Repetition(
        multiplier=0.8, base=1.25, allowed_length=allowed_length, window=window, breakers=breakers
    )
    row = row_of(1)
    expected = row.astype(np.float64)
    for token, penalty in dry(prompt + generated, repetition).items():
        expected[token] -= penalty
    got = penalised(prompt, generated, SamplingParams(repetition=repetition), row)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_breakers_are_looked_for_where_a_token_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand breakers that may begin anywhere: not the whole text again at each token."""
    tails = tuple((1,) * n + (end,) for n in range(19) for end in range(2, 60))
    repetition = Repetition(
        multiplier=1, base=1, allowed_length=2, window=10_000, breakers={1: tails}
    )
    looked = 0

    def counted(tokens: Any, at: int, count: int) -> tuple[int, ...]:
        nonlocal looked
        looked += 1
        return tail_of(tokens, at, count)

    tail_of = module._tail_of
    monkeypatch.setattr(module, "_tail_of", counted)
    made = History(np.array([1] * 1000, np.int32), SamplingParams(repetition=repetition))
    row = np.zeros(60, np.float32)
    for _ in range(1000):
        made.accept(1)
        made.penalise(row)
    assert looked <= 2000 * (MOST_TAIL_TOKENS + 1)


@pytest.mark.parametrize(("multiplier", "base"), [(1, 4), (100, 4), (100, 100), (100, 1.000001)])
def test_dry_reaches_no_infinity(multiplier: float, base: float) -> None:
    """It makes tokens unlikely and bans none: the only one that is allowed can still be drawn."""
    repetition = Repetition(multiplier=multiplier, base=base, allowed_length=1, window=5000)
    got = penalised([1] * 4000, [], SamplingParams(repetition=repetition), row_of(1))
    assert np.isfinite(got).all()
    assert got[1] < (-1e37 if base > 2 else -90)


def test_siblings_share_what_a_prompt_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's thread reads a long prompt once, not once for each of its choices."""
    read: list[int] = []
    suffixes = module._suffixes

    def counted(tokens: list[int]) -> list[int]:
        read.append(len(tokens))
        return suffixes(tokens)

    monkeypatch.setattr(module, "_suffixes", counted)
    repetition = Repetition(multiplier=1.0, base=2.0, allowed_length=1, window=100)
    sampling = SamplingParams(repetition=repetition)
    job = Job(prompt_ids=(1, 2, 3, 1, 2), n=5, max_tokens=4, sampling=sampling, seed=1)
    first, *others = Request(0, [job], frozenset(), 0.0).look_ahead(9)
    assert read == [5]
    assert first.history is not None
    first.history.accept(3)
    rows = [np.zeros(VOCABULARY, np.float32) for _ in (first, *others)]
    for row, sequence in zip(rows, (first, *others), strict=True):
        assert sequence.history is not None
        sequence.history.penalise(row)
    assert all(np.array_equal(row, rows[1]) for row in rows[1:])
    assert not np.array_equal(rows[0], rows[1])
