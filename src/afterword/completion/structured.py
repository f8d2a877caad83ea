"""``response_format`` and ``structured_outputs``: what the text of an answer must be (R17)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from afterword.completion.fields import (
    Json,
    Kind,
    Schema,
    duplicate,
    not_offered,
    out_of_range,
    unrecognized,
    wrong_type,
)
from afterword.core.errors import InvalidRequest
from afterword.core.job import GrammarKind, OutputGrammar
from afterword.core.limits import MOST_GRAMMAR_BYTES
from afterword.core.repeated import repeated_name

_ANY_OBJECT = b'{"type":"object"}'
_KINDS = frozenset(("type", "$ref", "enum", "const", "allOf", "anyOf", "oneOf"))
"""Keys of a JSON Schema that say which kinds of values follow it."""
_FORMATS = ("text", "json_object", "json_schema")


def _grammar(name: str, kind: GrammarKind, text: str | bytes) -> OutputGrammar:
    return OutputGrammar(kind, _bounded(name, text).decode())


def _bounded(name: str, text: str | bytes) -> bytes:
    """Returns the bytes of a grammar. Raises ``InvalidRequest`` for too many."""
    written = text.encode() if isinstance(text, str) else text
    if len(written) > MOST_GRAMMAR_BYTES:
        raise InvalidRequest(
            f"Invalid value for '{name}': it has {len(written)} bytes, and may have "
            f"{MOST_GRAMMAR_BYTES}.",
            param=name.partition(".")[0],
            code="invalid_value",
        )
    return written


def _schema(name: str, value: Json) -> OutputGrammar:
    return _grammar(name, "json", msgspec.json.encode(_schema_object(name, value)))


def _schema_object(name: str, value: Json) -> dict[str, Json]:
    if isinstance(value, str):
        # Before it is parsed: a parser in C holds the GIL to its end.
        _bounded(name, value)
        try:
            repeated = repeated_name(value, nested=True)
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise out_of_range(name, value, "a JSON Schema, or its JSON as a string") from None
        if repeated is not None:
            raise duplicate(name, repeated)
    if value is False:
        raise out_of_range(name, value, "a JSON Schema that some value follows")
    if value is True:
        # As a schema, it is what {} is: any value follows it.
        return {}
    if not isinstance(value, dict):
        raise wrong_type(name, value, "a JSON Schema, which is an object")
    return value


def _object_schema(name: str, value: Json) -> OutputGrammar:
    """Parse the schema of ``json_object``: the text is an object unless the schema has a kind.

    A schema with nothing but ``properties`` would allow a number, too. llama.cpp also reads it as
    the schema of an object.
    """
    schema = _schema_object(name, value)
    if _KINDS.isdisjoint(schema):
        schema = {"type": "object", **schema}
    return _grammar(name, "json", msgspec.json.encode(schema))


def _text(kind: GrammarKind) -> Callable[[str, Json], OutputGrammar]:
    def parse(name: str, value: Json) -> OutputGrammar:
        if not isinstance(value, str):
            raise wrong_type(name, value, "a string")
        if not value:
            raise out_of_range(name, value, "a string of at least 1 character")
        return _grammar(name, kind, value)

    return parse


def _choice(name: str, value: Json) -> OutputGrammar:
    wanted = "an array of at least 1 string, none of them empty"
    if not isinstance(value, list):
        raise wrong_type(name, value, wanted)
    for item in value:
        if not isinstance(item, str):
            raise wrong_type(name, item, wanted)
    if not value or "" in value:
        raise out_of_range(name, value, wanted)
    return _grammar(name, "choice", msgspec.json.encode(value))


def _object(name: str, value: Json) -> OutputGrammar | None:
    if not isinstance(value, bool):
        raise wrong_type(name, value, "a boolean")
    return _grammar(name, "json", _ANY_OBJECT) if value else None


_WAYS: Mapping[str, Callable[[str, Json], OutputGrammar | None]] = {
    "json": _schema,
    "json_object": _object,
    "regex": _text("regex"),
    "choice": _choice,
    "grammar": _text("grammar"),
}
_NEUTRAL: Mapping[str, Json] = {
    "disable_fallback": False,
    "disable_any_whitespace": False,
    "disable_additional_properties": False,
    "whitespace_pattern": None,
    "structural_tag": None,
    "_backend": None,
    "_backend_was_auto": False,
}
"""vLLM's other options, each with the value that asks for nothing."""


def _structured_outputs(name: str, value: Json) -> OutputGrammar | None:
    if not isinstance(value, dict):
        raise wrong_type(name, value, "an object")
    found = []
    for key, item in value.items():
        if item is None and (key in _WAYS or key in _NEUTRAL):
            continue
        if key in _WAYS:
            found.append(_WAYS[key](f"{name}.{key}", item))
        elif key not in _NEUTRAL:
            raise unrecognized(f"{name}.{key}")
        elif item is not _NEUTRAL[key]:
            only = msgspec.json.encode(_NEUTRAL[key]).decode()
            raise not_offered(f"{name}.{key}", f"its only value is {only}.")
    given = [grammar for grammar in found if grammar is not None]
    if len(given) != 1:
        raise InvalidRequest(
            f"Invalid value for '{name}': expected one of {', '.join(_WAYS)}, but got "
            f"{len(given)} of them.",
            param=name,
            code="invalid_value",
        )
    return given[0]


def _response_format(name: str, value: Json) -> OutputGrammar | None:
    if not isinstance(value, dict):
        raise wrong_type(name, value, "an object")
    kind = value.get("type")
    if kind not in _FORMATS:
        raise out_of_range(f"{name}.type", kind, f"one of {', '.join(_FORMATS)}")
    known = {"text": set(), "json_object": {"schema"}, "json_schema": {"json_schema"}}[kind]
    for key, item in value.items():
        if key != "type" and key not in known and item is not None:
            raise unrecognized(f"{name}.{key}")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")
        if schema is None:
            return _grammar(name, "json", _ANY_OBJECT)
        return _object_schema(f"{name}.schema", schema)
    return _named_schema(f"{name}.json_schema", value.get("json_schema"))


def _named_schema(name: str, value: Json) -> OutputGrammar:
    """OpenAI's wrapping: ``name`` and ``description`` are for people, schemas are always strict."""
    if not isinstance(value, dict):
        raise wrong_type(name, value, "an object")
    for key, item in value.items():
        if key not in {"name", "description", "schema", "strict"} and item is not None:
            raise unrecognized(f"{name}.{key}")
    for key, wanted, kinds in (
        ("name", "a string", str), ("description", "a string", str), ("strict", "a boolean", bool),
    ):  # fmt: skip
        item = value.get(key)
        if item is not None and not isinstance(item, kinds):
            raise wrong_type(f"{name}.{key}", item, wanted)
    return _schema(f"{name}.schema", value.get("schema"))


_ANY_SCHEMA: Schema = {"anyOf": [{"type": ["object", "string"]}, {"const": True}]}
_ANY_SCHEMA_OR_NULL: Schema = {"anyOf": [*_ANY_SCHEMA["anyOf"], {"type": "null"}]}
_NAMED: Schema = {
    "type": "object",
    "required": ["schema"],
    "properties": {
        "name": {"type": ["string", "null"]},
        "description": {"type": ["string", "null"]},
        "strict": {"type": ["boolean", "null"]},
        "schema": _ANY_SCHEMA,
    },
    "additionalProperties": {"type": "null"},
}
RESPONSE_FORMAT = Kind(
    _response_format,
    {
        "type": "object",
        "required": ["type"],
        "oneOf": [
            {
                "properties": {"type": {"const": name}, **more},
                "required": required,
                "additionalProperties": {"type": "null"},
            }
            for name, more, required in (
                ("text", {}, []),
                (
                    "json_object",
                    {"schema": _ANY_SCHEMA_OR_NULL},
                    [],
                ),
                ("json_schema", {"json_schema": _NAMED}, ["json_schema"]),
            )
        ],
    },
)
_OTHERS: Mapping[str, Schema] = {
    name: {"enum": [value, None]} if value is not None else {"type": "null"}
    for name, value in _NEUTRAL.items()
}
STRUCTURED_OUTPUTS = Kind(
    _structured_outputs,
    {
        "type": "object",
        "properties": {
            "json": {"description": "A JSON Schema that the text follows, or null."},
            "json_object": {"description": "true: the text is a JSON object."},
            "regex": {"description": "A regular expression that the whole text matches, or null."},
            "choice": {"description": "Strings, one of which the text is, or null."},
            "grammar": {"description": "A grammar in Lark's syntax or in GBNF, or null."},
            **_OTHERS,
        },
        "additionalProperties": False,
        # One of the five, and not null or false.
        "oneOf": [
            {"required": [name], "properties": {name: schema}}
            for name, schema in {
                "json": _ANY_SCHEMA,
                "json_object": {"const": True},
                "regex": {"type": "string", "minLength": 1},
                "choice": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": "string", "minLength": 1},
                },
                "grammar": {"type": "string", "minLength": 1},
            }.items()
        ],
    },
)
