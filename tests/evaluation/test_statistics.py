"""Intervals and the paired test, against their definitions."""

from __future__ import annotations

import itertools
import math
import statistics
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.evaluation.statistics import mcnemar, share

Z = statistics.NormalDist().inv_cdf(0.975)


@given(met=st.lists(st.booleans(), min_size=2, max_size=300))
def test_the_interval_has_the_shares_that_the_score_test_keeps(met: list[bool]) -> None:
    found = share(met)
    count = len(met)
    assert found.value == sum(met) / count
    for bound, end in ((found.low, 0), (found.high, 1)):
        if found.value == end:
            assert bound == end
            continue
        # Wilson's bounds are where the standardised difference is the quantile.
        deviation = math.sqrt(bound * (1 - bound) / count)
        assert abs(found.value - bound) / deviation == pytest.approx(Z)
    assert 0 <= found.low <= found.value <= found.high <= 1
    # As lm-eval's mean_stderr.
    assert found.stderr == pytest.approx(statistics.stdev(map(float, met)) / math.sqrt(count))


def test_the_ends() -> None:
    assert share([True]).stderr is None
    for count in range(1, 30):
        assert share([False] * count).low == 0
        assert share([True] * count).high == 1
    with pytest.raises(ValueError, match="no items"):
        share([])


@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=14))
def test_mcnemar_counts_coins(pairs: list[tuple[bool, bool]]) -> None:
    found = mcnemar([a for a, _ in pairs], [b for _, b in pairs])
    only = [a for a, b in pairs if a != b]
    assert (found.only_first, found.only_second) == (sum(only), len(only) - sum(only))
    assert found.both == sum(a and b for a, b in pairs)
    assert found.both + found.neither + len(only) == len(pairs)
    # Every way that the coins can fall: how many are at least as uneven.
    uneven = abs(2 * sum(only) - len(only))
    ways = list(itertools.product((0, 1), repeat=len(only)))
    as_uneven = sum(abs(2 * sum(way) - len(only)) >= uneven for way in ways)
    assert found.p_value == pytest.approx(as_uneven / len(ways))


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (0, 1), (1, 0), (0, 60), (3, 60), (30, 30), (30, 31), (700, 800)]
)
def test_mcnemar_is_exact(first: int, second: int) -> None:
    met = [(True, False)] * first + [(False, True)] * second
    differing = first + second
    fewer = sum(math.comb(differing, k) for k in range(min(first, second) + 1))
    wanted = min(Fraction(2 * fewer, 2**differing), Fraction(1))
    found = mcnemar([one for one, _ in met], [other for _, other in met])
    assert found.p_value == float(wanted)


def test_mcnemar_of_many_items_computes_no_binomial_coefficient_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of 40,000 items took 47 s."""
    monkeypatch.setattr(math, "comb", None)
    half = [i % 2 == 0 for i in range(40_000)]
    assert mcnemar(half, [not one for one in half]).p_value == 1
