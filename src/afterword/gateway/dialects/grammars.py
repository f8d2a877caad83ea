"""What servers that read GBNF, and part of JSON Schema, can be given as a grammar.

These servers skip keywords of a schema that they do not know. So schemas with other keywords than
all of them know are refused.
"""

from __future__ import annotations

import json
from typing import Any

from afterword.core.job import OutputGrammar

SCHEMA_KEYWORDS = (
    "type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf",
    "$ref",
)  # fmt: skip
"""The keywords that are passed on; annotations and definitions go with them."""
_ANNOTATIONS = frozenset(
    {"$schema", "$comment", "title", "description", "default", "examples", "deprecated"}
)
_DEFINITIONS = frozenset({"$defs", "definitions"})
_ALONE = ("$ref", "anyOf", "const", "enum")
"""Servers skip other keywords next to one of these, but for a ``type`` next to the last two."""
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", '"': '\\"'}


def unusable(grammar: OutputGrammar) -> str | None:
    """Returns why such a server cannot keep to a grammar, as its predicate, or None."""
    if grammar.kind == "json":
        return _unusable_schema(json.loads(grammar.text))
    if grammar.kind == "grammar" and "::=" not in grammar.text:
        return "reads grammars in GBNF only"
    if grammar.kind == "choice" and any(
        character < " " and character not in _ESCAPES
        for choice in json.loads(grammar.text)
        for character in choice
    ):
        return "reads no control characters in a choice"
    return None


def gbnf_of_choices(grammar: OutputGrammar) -> str:
    """Returns a choice as GBNF."""
    choices = " | ".join(
        '"' + "".join(_ESCAPES.get(character, character) for character in choice) + '"'
        for choice in json.loads(grammar.text)
    )
    return f"root ::= {choices}"


def _unusable_schema(schema: Any) -> str | None:  # noqa: ANN401 - any JSON value
    if not isinstance(schema, dict):
        return "reads schemas that are objects only"
    keywords = [key for key in schema if key not in _ANNOTATIONS and key not in _DEFINITIONS]
    for key in keywords:
        if key not in SCHEMA_KEYWORDS:
            return f"skips the keyword {key!r}"
    for alone in _ALONE:
        if alone in schema:
            others = set(keywords) - {alone}
            if others - ({"type"} if alone in {"const", "enum"} else set()):
                return f"skips keywords next to {alone!r}"
            break
    else:
        if "type" not in schema:
            return "needs the type of each value"
    return next(filter(None, map(_unusable_schema, _parts(schema))), None)


def _parts(schema: dict[str, Any]) -> list[Any]:
    """Returns the schemas inside a schema."""
    parts: list[Any] = []
    for key in ("properties", *_DEFINITIONS):
        inner = schema.get(key)
        parts += inner.values() if isinstance(inner, dict) else ()
    parts += schema["anyOf"] if isinstance(schema.get("anyOf"), list) else ()
    for key in ("items", "additionalProperties"):
        if key in schema and not isinstance(schema[key], bool):
            parts.append(schema[key])
    return parts
