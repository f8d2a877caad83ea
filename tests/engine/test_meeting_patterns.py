"""How many patterns may meet, by what makes them meet."""

from __future__ import annotations

import json
from typing import Any

import pytest

from afterword.engine.meeting_patterns import refuse_meeting_schemas, refuse_meeting_terminals

MOST = 10


def _text(i: int, **more: Any) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^[ab]*a[ab]{{{i}}}$", **more}


def _all_of(count: int) -> Any:
    return {"allOf": [_text(i) for i in range(count)]}


def _nested(count: int) -> Any:
    return _text(0, allOf=[_nested(count - 1)]) | _text(count) if count > 1 else _text(1)


def _references(count: int) -> Any:
    chain = {
        f"d/{i}": _text(i, **({"$ref": f"#/$defs/d~1{i - 1}"} if i else {})) for i in range(count)
    }
    return {"$defs": chain, "properties": {"a": {"$ref": f"#/$defs/d~1{count - 1}"}}}


def _same_property(count: int) -> Any:
    return {
        "properties": {"a": _text(0)},
        "allOf": [{"properties": {"a": _text(i)}} for i in range(1, count)],
    }


def _alternatives(count: int) -> Any:
    return {"allOf": [{"anyOf": [_text(i), {"type": "string"}]} for i in range(count)]}


def _items(count: int) -> Any:
    return {"allOf": [{"prefixItems": [True, _text(i)]} for i in range(count)]}


def _other_properties(count: int) -> Any:
    schemas = [{"additionalProperties": _text(i)} for i in range(1, count)]
    return {"allOf": [{"properties": {"a": _text(0)}}, *schemas]}


def _formats(count: int) -> Any:
    return {"allOf": [*({"format": f"f{i}"} for i in range(count - 1)), _text(0)]}


@pytest.mark.parametrize(
    "schema",
    [
        _all_of,
        _nested,
        _references,
        _same_property,
        _alternatives,
        _items,
        _other_properties,
        _formats,
    ],
)
def test_too_many_patterns_in_one_place_are_refused(schema: Any) -> None:
    refuse_meeting_schemas(schema(MOST))
    with pytest.raises(ValueError, match="more than 10 of its patterns meet in one place"):
        refuse_meeting_schemas(schema(MOST + 1))
    with pytest.raises(ValueError, match="more than 10 of its patterns meet in one place"):
        refuse_meeting_terminals(f"start: %json {json.dumps(schema(MOST + 1))}")


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {f"p{i}": _text(i) for i in range(50)}},
        {"anyOf": [_text(i) for i in range(50)]},
        {"allOf": [_text(1) for _ in range(50)]},
        {"$defs": {"d": {"items": {"$ref": "#/$defs/d"}, **_text(1)}}, "$ref": "#/$defs/d"},
        {"$defs": {"d": {"allOf": [{"$ref": "#/$defs/d"}]}}, "$ref": "#/$defs/d"},
        {"$ref": "#/$defs/nowhere", "anyOf": [{"$ref": 3}], "allOf": 7, "prefixItems": {}},
        True,
    ],
)
def test_patterns_apart_are_no_matter(schema: Any) -> None:
    refuse_meeting_schemas(schema)


def test_references_are_as_deep_as_they_like() -> None:
    depth = 10_000
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(depth)}
    refuse_meeting_schemas({"$defs": {**chain, f"d{depth}": _text(1)}, "$ref": "#/$defs/d0"})


def test_alternatives_that_are_too_deep_are_refused() -> None:
    depth = 20_000
    chain = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}]} for i in range(depth)}
    with pytest.raises(ValueError, match="nested too deeply"):
        refuse_meeting_schemas({"$defs": chain, "$ref": "#/$defs/d0"})


def test_the_search_is_bounded() -> None:
    """Two lists that meet in every order make a place for each pair, and so on below."""
    names = [f"p{i}" for i in range(150)]
    chain = {
        f"d{i}": {
            "properties": {
                name: {"$ref": f"#/$defs/d{(i * 7 + j) % 150}"} for j, name in enumerate(names)
            }
        }
        for i in range(150)
    }
    with pytest.raises(ValueError, match="in too many ways"):
        refuse_meeting_schemas(
            {"$defs": chain, "allOf": [{"$ref": "#/$defs/d1"}, {"$ref": "#/$defs/d2"}]}
        )


def test_terminals() -> None:
    parts = " & ".join(f"/[ab]*a[ab]{{{i}}}/" for i in range(MOST))
    refuse_meeting_terminals(f"start: T\nT: {parts}")
    refuse_meeting_terminals(
        'start: "' + "&" * 50 + '" // ' + "&" * 50 + "\nT: /a" + "&" * 50 + "/"
    )
    with pytest.raises(ValueError, match="more than 10 of its patterns meet"):
        refuse_meeting_terminals(f"start: T\nT: {parts} & /a/")
