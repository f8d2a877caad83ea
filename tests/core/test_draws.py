"""D2: numbers that depend on seed, sibling and position, and on nothing else."""

from __future__ import annotations

from itertools import product

import numpy as np

from afterword.core.draws import mix64, uniform


def test_numbers_are_those_of_splitmix64() -> None:
    """A seed keeps its tokens over versions. Source: the reference code, from state 1234567."""
    step = 0x9E3779B97F4A7C15
    found = [mix64((1234567 + i * step) % 2**64) for i in range(5)]
    assert found == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ]  # fmt: skip
    assert uniform(-5, 1, 2) == 0.045350946364010936
    assert uniform(-5, 1, 2, second=True) == 0.34442742099109047


def test_every_argument_counts() -> None:
    places = list(product((0, 1, -1, 2**63 - 1), range(4), range(4), (False, True)))
    values = [uniform(seed, sibling, at, second=second) for seed, sibling, at, second in places]
    assert len(set(values)) == len(places)
    assert min(values) >= 0
    assert max(values) < 1
    assert uniform(-1, 2, 3) == uniform(2**64 - 1, 2, 3)


def test_numbers_of_neighbours_are_independent() -> None:
    """Also the two numbers of a position: whether XTC excludes says nothing about the draw."""
    first = [uniform(7, 0, at) for at in range(4000)]
    others = (
        [uniform(7, 0, at, second=True) for at in range(4000)],
        [uniform(7, 1, at) for at in range(4000)],
        [uniform(8, 0, at) for at in range(4000)],
        [uniform(7, 0, at + 1) for at in range(4000)],
    )
    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.06
        assert abs(np.mean(other) - 0.5) < 0.02
