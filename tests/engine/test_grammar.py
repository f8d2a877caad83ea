"""What a grammar costs is bounded, however few bytes it has."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from afterword.core.errors import UnusableGrammar
from afterword.core.job import GrammarKind, OutputGrammar
from afterword.core.limits import MOST_GRAMMAR_BYTES
from afterword.engine.grammar import Grammars
from afterword.engine.toy import ToyTokenizer

TOKENIZER = ToyTokenizer()


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKENIZER)


LONG: list[tuple[GrammarKind, str, str]] = [
    ("regex", "a{1000000}", "a"),
    ("regex", "((a{100}){100}){100}", "a"),
    ("regex", "[bc]a{1000000,}x*", "ba"),
    ("grammar", 'start: X\nX: "a"{1000000}', "a"),
    ("grammar", "start: /a{1000000}/", "a"),
    ("grammar", 'root ::= "a"{100000}', "a"),
    ("choice", json.dumps(["a" * 60_000]), "a"),
    ("json", json.dumps({"const": "a" * 60_000}), '"aaa'),
    ("json", json.dumps({"type": "string", "pattern": "^a{1000000}$"}), '"aaa'),
]


@pytest.mark.parametrize(("kind", "text", "begins"), LONG)
def test_text_without_a_choice_is_not_looked_up_in_advance(
    grammars: Grammars, kind: GrammarKind, text: str, begins: str
) -> None:
    """A million bytes of it would take minutes, and hold up everybody at each token."""
    matcher = grammars.constraint(OutputGrammar(kind, text)).compiled.follow()
    for character in begins:
        (token,) = TOKENIZER.encode(character)
        assert matcher.mask()[token]
        matcher.accept(token)
    for _ in range(50):
        matcher.accept(int(np.flatnonzero(matcher.mask())[0]))


def multiples(*values: float) -> dict[str, Any]:
    return {"allOf": [{"type": "integer", "multipleOf": value} for value in values]}


@pytest.mark.parametrize(
    "schema",
    [
        multiples(9973, 9967),
        multiples(9973, 10),
        {"type": "number", "multipleOf": 99_991},
        {"type": "number", "multipleOf": 1e-300, "anyOf": [{"multipleOf": 7}]},
        {"type": "array", "items": {"type": "integer", "multipleOf": 99_991}},
        {"type": "integer", "multipleOf": -99_991},
        {"type": "integer", "multipleOf": 1e300},
    ],
)
def test_remainders_are_bounded(grammars: Grammars, schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    with pytest.raises(UnusableGrammar, match="multipleOf has more than 10000 remainders"):
        grammars.constraint(OutputGrammar("json", text))
    escaped = text.replace("multipleOf", "multipleO\\u0066")
    for within in (text, escaped):
        with pytest.raises(UnusableGrammar, match="remainders"):
            grammars.constraint(OutputGrammar("grammar", f"start: %json {within}"))


@pytest.mark.parametrize(
    "schema",
    [
        multiples(7),
        multiples(4, 6, 0.5),
        {"properties": {name: {"type": "number", "multipleOf": value}
                        for name, value in (("a", 0.01), ("b", 1000), ("c", 97), ("d", 0.25))}},
        {"type": "integer", "multipleOf": 9973},
    ],
)  # fmt: skip
def test_usual_multiples_are_kept(grammars: Grammars, schema: dict[str, Any]) -> None:
    assert grammars.constraint(OutputGrammar("json", json.dumps(schema)))


@pytest.mark.parametrize("number", [f"0.{'0' * 30}1e36", f"99991.{'0' * 30}", "99991E+00000000000"])
def test_remainders_are_bounded_however_a_number_is_written(
    grammars: Grammars, number: str
) -> None:
    text = f'{{"type": "integer", "multipleOf": {number}}}'
    with pytest.raises(UnusableGrammar, match="multipleOf has more than 10000 remainders"):
        grammars.constraint(OutputGrammar("json", text))


@pytest.mark.parametrize(
    ("bounds", "named"),
    [
        # llguidance would recurse without end, and take the process with it.
        ({"minimum": -(2**63), "maximum": -(2**63)}, "minimum"),
        ({"minimum": 1 - 2**63, "maximum": 2 - 2**63}, "minimum"),
        ({"exclusiveMinimum": -1e19, "maximum": -1e19}, "exclusiveMinimum"),
        # It would allow 2**63 - 1, or the nearest double.
        ({"minimum": 10**30, "maximum": 10**30 + 3}, "minimum"),
        ({"minimum": 1e19}, "minimum"),
        ({"minimum": 2**53 + 1}, "minimum"),
        ({"maximum": -(2**53) - 1}, "maximum"),
        ({"minimum": 0, "exclusiveMaximum": 2**53 + 3}, "exclusiveMaximum"),
    ],
)
def test_bounds_that_cannot_be_kept_are_refused(
    grammars: Grammars, bounds: dict[str, float], named: str
) -> None:
    text = json.dumps({"type": "integer", **bounds})
    met = json.dumps({"allOf": [bounds, {"type": "integer"}]})
    refused = pytest.raises(UnusableGrammar, match=f"its {named} is too far from 0")
    for kind, written in (("json", text), ("json", met), ("grammar", f"start: %json {text}")):
        with refused:
            grammars.constraint(OutputGrammar(kind, written))  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [2**53, 2**53 + 2, 2**63 - 1, 2**64 - 1, 1e30])
def test_bounds_of_usual_types_are_kept(grammars: Grammars, most: float) -> None:
    text = json.dumps({"type": "integer", "minimum": -(2**53), "maximum": most})
    assert grammars.constraint(OutputGrammar("json", text))


def allows(grammars: Grammars, schema: dict[str, Any], text: str) -> bool:
    matcher = grammars.constraint(OutputGrammar("json", json.dumps(schema))).compiled.follow()
    for character in text:
        (token,) = TOKENIZER.encode(character)
        if not matcher.mask()[token]:
            return False
        matcher.accept(token)
    return bool(matcher.mask()[sorted(TOKENIZER.end_ids)].any())


QUOTE, BACKSLASH, LINE, LETTER = r'"\""', r'"\\"', r'"\n"', '"a"'


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r'^[^"]*$', {BACKSLASH, LINE, LETTER}),
        (r"^[^\\]*$", {QUOTE, LINE, LETTER}),
        (r'^[^"\\]+$', {LINE, LETTER}),
        (r'^[^"\n]*$', {BACKSLASH, LETTER}),
        (r'^[^-"]$', {BACKSLASH, LINE, LETTER}),
        (r'^[^]"]$', {BACKSLASH, LINE, LETTER}),
        (r'^[^\w"]$', {BACKSLASH, LINE}),
        (r"^[\[^]?a$", {LETTER}),
        (r"^[^b]$", {QUOTE, BACKSLASH, LINE, LETTER}),
        (r"^.$", {QUOTE, BACKSLASH, LETTER}),
    ],
)
def test_what_a_negated_class_excludes_is_excluded(
    grammars: Grammars, pattern: str, allowed: set[str]
) -> None:
    """llguidance would allow an escaped quote or backslash, however the class begins."""
    schema = {"type": "string", "pattern": pattern}
    texts = (QUOTE, BACKSLASH, LINE, LETTER)
    assert {text for text in texts if allows(grammars, schema, text)} == allowed
    named = {"type": "object", "patternProperties": {pattern: {}}, "additionalProperties": False}
    names = {text for text in texts if allows(grammars, named, f"{{{text}:1}}")}
    assert names == allowed


@pytest.mark.parametrize(
    "schema",
    [
        {"const": 2**53 + 1},
        {"enum": [1, 2**64 - 1]},
        {"properties": {"a": {"const": {"b": [-(2**63) - 1]}}}},
    ],
)
def test_constants_that_would_change_are_refused(
    grammars: Grammars, schema: dict[str, Any]
) -> None:
    with pytest.raises(UnusableGrammar, match="a whole number that doubles cannot keep"):
        grammars.constraint(OutputGrammar("json", json.dumps(schema)))


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [2**53, 10**22, 123456789012345680000, 0.1, "[^a]", True]},
        {"type": "integer", "default": 2**53 + 1, "examples": [2**63 - 1]},
        {"type": "object", "properties": {"const": {"type": "integer", "maximum": 2**63 - 1}}},
    ],
)
def test_constants_that_stay_are_kept(grammars: Grammars, schema: dict[str, Any]) -> None:
    assert grammars.constraint(OutputGrammar("json", json.dumps(schema)))


def rules(text: str, last: str, levels: int) -> str:
    return "\n".join([*(text.format(i, i + 1) for i in range(levels)), last.format(levels)])


def definitions(schema: str, levels: int) -> str:
    named = [f'"{i}":{{{schema.format(i + 1)}}}' for i in range(levels)]
    return f'{{"$ref":"#/$defs/0","$defs":{{{",".join(named)},"{levels}":{{}}}}}}'


DEEP: list[tuple[GrammarKind, str]] = [
    ("grammar", "start: r0\n" + rules("r{}:r{}", 'r{}:"a"', 5600)),
    ("grammar", "start: T0\n" + rules("T{}:T{}", 'T{}:"a"', 5600)),
    ("grammar", "root ::= r0\n" + rules("r{}::=r{}", 'r{}::="a"', 4000)),
    ("json", definitions('"items":{{"$ref":"#/$defs/{}"}}', 1600)),
    ("json", definitions('"properties":{{"a":{{"$ref":"#/$defs/{}"}}}}', 1250)),
]


@pytest.mark.parametrize(("kind", "text"), DEEP)
def test_references_may_be_as_deep_as_a_grammar_is_long(
    grammars: Grammars, kind: GrammarKind, text: str
) -> None:
    """On a usual stack they would overflow it, and end the process."""
    assert MOST_GRAMMAR_BYTES * 0.8 < len(text) <= MOST_GRAMMAR_BYTES
    matcher = grammars.constraint(OutputGrammar(kind, text)).compiled.follow()
    assert matcher.mask().any()


@pytest.mark.parametrize("text", ['root ::= "\\', "other ::= ", "root ::= (", "a ::= b\nb ::= a"])
def test_what_its_reader_fails_at_cannot_be_used(grammars: Grammars, text: str) -> None:
    with pytest.raises(UnusableGrammar):
        grammars.constraint(OutputGrammar("grammar", text))


def test_a_vocabulary_without_end_tokens_cannot_keep_to_a_grammar() -> None:
    """The request is refused; llguidance would raise an error of its own."""
    endless = ToyTokenizer()
    endless.end_ids = frozenset()
    with pytest.raises(UnusableGrammar, match="no end token"):
        Grammars(endless)


@pytest.mark.parametrize(
    "attributes", ["temperature=0.5", 'stop="]", temperature = 1', "max_tokens=3,\n temperature=0"]
)
def test_a_temperature_of_a_rule_is_refused(grammars: Grammars, attributes: str) -> None:
    text = f'start: "[temperature=1]" a\na[{attributes}]: /c+/'
    with pytest.raises(UnusableGrammar, match="a rule cannot have a temperature"):
        grammars.constraint(OutputGrammar("grammar", text))
    grammars.constraint(OutputGrammar("grammar", text.replace(f"[{attributes}]", "[max_tokens=3]")))
