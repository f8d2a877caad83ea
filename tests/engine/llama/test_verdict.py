"""The rule that chooses a form, on figures that nobody had to measure."""

from __future__ import annotations

import pytest

from afterword.engine.llama.verdict import (
    LEAST_GAIN,
    LEAST_RATIO,
    MARGIN_KL,
    Fidelity,
    Figures,
    Speeds,
    choose,
    ranked,
)

BASE_KL = 0.003


def figures(
    prefill: float = 1,
    one: float = 1,
    many: float = 1,
    *,
    kl: float | None = BASE_KL,
    invariant: bool = True,
) -> Figures:
    """Ratios to a file as it is that makes 100 tokens a second of everything."""
    return Figures(
        batch_invariant=invariant,
        speeds=Speeds(prefill=100 * prefill, one=100 * one, many=100 * many),
        fidelity=None if kl is None else Fidelity(kl, 0.96, 2000),
    )


@pytest.mark.parametrize(
    ("forms", "exact", "chosen"),
    [
        ({}, True, "as-is"),
        ({"q8_0": figures(2, 1, 2)}, True, "q8_0"),
        # The geometric mean: twice and half are even.
        ({"q8_0": figures(2, 1, 1), "bf16": figures(1.5, 1.5, 1)}, True, "bf16"),
        ({"q8_0": figures(2, 1, 2), "bf16": figures(3, 1, 3)}, True, "bf16"),
        # Not much faster, or much slower in one of the three.
        ({"q8_0": figures(1, 1, (LEAST_GAIN - 0.01) ** 3)}, True, "as-is"),
        ({"q8_0": figures(1, 1, (LEAST_GAIN + 0.01) ** 3)}, True, "q8_0"),
        ({"q8_0": figures(4, LEAST_RATIO - 0.01, 4)}, True, "as-is"),
        ({"q8_0": figures(4, LEAST_RATIO + 0.01, 4)}, True, "q8_0"),
        # The bound of fidelity; what was not compared is not within it.
        ({"q4_0": figures(3, 3, 3, kl=BASE_KL + MARGIN_KL + 1e-6)}, True, "as-is"),
        ({"q4_0": figures(3, 3, 3, kl=BASE_KL + MARGIN_KL - 1e-6)}, True, "q4_0"),
        ({"q4_0": figures(3, 3, 3, kl=None)}, True, "as-is"),
        ({"q4_0": figures(3, 3, 3, kl=0.2), "q8_0": figures(2, 1, 2)}, True, "q8_0"),
        # The promise, where it is wanted.
        ({"bf16": figures(3, 1, 3, invariant=False)}, True, "as-is"),
        ({"bf16": figures(3, 1, 3, invariant=False)}, False, "bf16"),
        ({"bf16": Figures(left_out="no memory"), "f16": Figures()}, False, "as-is"),
    ],
)
def test_the_fastest_form_within_the_bounds_is_chosen(
    forms: dict[str, Figures], exact: bool, chosen: str
) -> None:
    assert choose({"as-is": figures(), **forms}, exact=exact).form == chosen


def test_a_file_that_was_not_compared_is_kept() -> None:
    assert choose({"as-is": figures(kl=None), "q8_0": figures(2, 2, 2)}, exact=True).form == "as-is"


def test_the_reason_has_the_figures() -> None:
    why = choose({"as-is": figures(), "q8_0": figures(2, 0.8, 1.6, kl=0.004)}, exact=True).why
    assert why.startswith("1.37 times")
    for said in ("prefill 2.00", "one stream 0.80", "many 1.60", "0.0040", "0.0030"):
        assert said in why


def test_candidates_are_in_the_order_of_their_speed() -> None:
    found = {"as-is": figures(), "q8_0": figures(2), "bf16": figures(3, kl=None), "f16": figures(2)}
    assert ranked(found, exact=True) == ["bf16", "f16", "q8_0"]
