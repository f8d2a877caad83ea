"""Kinds of fields: what a parser takes, and what its refusal says (R19)."""

from __future__ import annotations

from typing import Any

import pytest

from afterword.completion.fields import INT64, integer, shown
from afterword.core.errors import InvalidRequest


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("my secret", "a string of 9 characters"),
        (["my secret", 1], "an array of 2 items"),
        ({"my": "secret"}, "an object"),
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (-7, "-7"),
        (16.5, "16.5"),
        (2**128 - 1, "340282366920938463463374607431768211455"),
        (2**128, "an integer of 129 bits"),
    ],
)
def test_R19_an_error_shows_a_value_short_and_without_text(value: Any, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize("value", [0, 5, 5.0])
def test_R19_a_number_without_a_fraction_is_an_integer(value: Any) -> None:
    parsed = integer(0, 5).parse("n", value)
    assert (parsed, type(parsed)) == (int(value), int)


@pytest.mark.parametrize(
    ("least", "most", "value", "message"),
    [
        (0, 5, 6, "expected an integer from 0 to 5 (or less), but got 6 "),
        (0, 5, -1.0, "expected an integer from 0 to 5 (or less), but got -1 "),
        (0, INT64 - 1, -1, "expected a 64-bit integer of at least 0 (or less), but got -1 "),
        (
            0,
            INT64 - 1,
            2**63,
            "64-bit integer of at least 0 (or less), but got 9223372036854775808 ",
        ),
        (-INT64, INT64 - 1, 1e300, "a 64-bit integer (or less), but got an integer of 997 bits "),
        (0, 5, 16.5, "expected an integer, but got 16.5 "),
        (0, 5, "16", "expected an integer, but got a string of 2 characters "),
        (0, 5, True, "expected an integer, but got true "),
    ],
)
def test_R19_a_refusal_names_the_value_and_the_limit(
    least: int, most: int, value: Any, message: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        integer(least, most, hint=" (or less)").parse("n", value)
    assert message in str(refused.value)
    assert refused.value.param == "n"
