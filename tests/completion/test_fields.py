"""Kinds of fields: what a parser takes, and what its refusal says (R19)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from afterword.completion.fields import INT64, Schema, integer, shown
from afterword.completion.request import parsers, schema
from afterword.core.errors import InvalidRequest
from afterword.core.limits import Limits


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


LIMITS = Limits(max_prompts=3)


def example(wanted: Schema) -> Any:
    """Returns a value of a schema without alternatives."""
    if "items" in wanted:
        return [example(wanted["items"])]
    return "x" if "string" in wanted["type"] else 1


def edges(wanted: Schema) -> Iterator[tuple[Any, Any]]:
    """Yields pairs of a value at a limit of a schema, and the next value beyond it."""
    for one in wanted.get("anyOf", [wanted]):
        for name, step in (("minimum", -1), ("maximum", 1)):
            if name in one:
                at = one[name]
                whole = "integer" in one["type"]
                yield at, at + step if whole else math.nextafter(at, at + step)
        for name, step in (("minLength", -1), ("maxLength", 1)):
            if name in one:
                yield "x" * one[name], "x" * (one[name] + step)
        for name, step in (("minItems", -1), ("maxItems", 1)):
            # No array has as many, or fewer than none.
            if 0 < one.get(name, 0) < INT64 - 1:
                item = example(one["items"])
                yield [item] * one[name], [item] * (one[name] + step)
        if "items" in one:
            yield from (([at], [beyond]) for at, beyond in edges(one["items"]))


EDGES = [
    (name, at, beyond)
    for name, wanted in schema(LIMITS)["properties"].items()
    if name in parsers(LIMITS) and name != "model"  # R1 has other words for an empty one
    for at, beyond in edges(wanted)
]


def test_every_kind_of_limit_has_an_edge() -> None:
    assert len(EDGES) > 60


@pytest.mark.parametrize(("name", "at", "beyond"), EDGES)
def test_R19_a_limit_of_the_schema_is_the_parsers(name: str, at: Any, beyond: Any) -> None:
    parse = parsers(LIMITS)[name]
    parse(name, at)
    with pytest.raises(InvalidRequest) as refused:
        parse(name, beyond)
    assert refused.value.param == name
