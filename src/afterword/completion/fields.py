"""Kinds of request fields: each has a parser and the JSON Schema of what the parser accepts.

A parser returns a value, or raises a 400 that names the field, the value and the limit (R19).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, get_args

import msgspec

from afterword.core.errors import InvalidRequest
from afterword.core.limits import Limits

# A value from JSON, before a parser has given it a type.
Json: TypeAlias = Any
Parser: TypeAlias = Callable[[str, Json], Any]
Schema: TypeAlias = dict[str, Any]


class Kind(msgspec.Struct, frozen=True):
    """What a field may be, apart from null: ``parse`` never gets null, ``schema`` has none."""

    parse: Parser
    schema: Schema


class Field(msgspec.Struct, frozen=True):
    """The declaration of a request field, as an annotation of its type.

    ``kind`` is a kind, or makes one from the operator's limits. ``default`` is the value that null
    means, if it means one, or makes it from the limits. A ``required`` field may be neither null
    nor absent.
    """

    kind: Kind | Callable[[Limits], Kind]
    help: str
    default: Json | msgspec.UnsetType | Callable[[Limits], Json] = msgspec.UNSET
    required: bool = False

    def kind_with(self, limits: Limits) -> Kind:
        """Returns the kind under these limits."""
        return self.kind if isinstance(self.kind, Kind) else self.kind(limits)

    def schema_with(self, limits: Limits) -> Schema:
        """Returns the JSON Schema under these limits. It has null unless the field is required."""
        default = self.default(limits) if callable(self.default) else self.default
        schema = self.kind_with(limits).schema
        if not self.required:
            schema = _or_null(schema)
        more = {} if default is msgspec.UNSET or default is None else {"default": default}
        return {**schema, "description": self.help, **more}


def declared(request: type[msgspec.Struct]) -> Mapping[str, Field]:
    """Returns the fields of a request's struct by their names on the wire."""
    fields = {}
    for field in msgspec.structs.fields(request):
        *_, declaration = get_args(field.type)
        fields[field.encode_name] = declaration
    return fields


def object_schema(request: type[msgspec.Struct], limits: Limits, description: str = "") -> Schema:
    """Returns the JSON Schema of a request's body."""
    fields = declared(request)
    return {
        "type": "object",
        "description": description,
        "additionalProperties": False,
        "required": [name for name, field in fields.items() if field.required],
        "properties": {name: field.schema_with(limits) for name, field in fields.items()},
    }


def _or_null(schema: Schema) -> Schema:
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "oneOf" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    kind = schema["type"]
    return {**schema, "type": [*kind, "null"] if isinstance(kind, list) else [kind, "null"]}


_SHOWN_CHARACTERS = 40
_SHOWN_BITS = 128
INT64 = 2**63


def shown(value: Json) -> str:
    """Returns a value as an error may show it: short, and without a client's text."""
    if isinstance(value, str):
        return f"a string of {_number_of(value, 'character')}"
    if isinstance(value, list):
        return f"an array of {_number_of(value, 'item')}"
    if isinstance(value, dict):
        return "an object"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)


def _number_of(values: Sequence[Json], name: str) -> str:
    return f"{len(values)} {name}{'' if len(values) == 1 else 's'}"


def wrong_type(name: str, value: Json, wanted: str) -> InvalidRequest:
    """Returns the 400 for a value of a wrong type."""
    return InvalidRequest(
        f"Invalid type for '{name}': expected {wanted}, but got {shown(value)} instead.",
        param=name,
        code="invalid_type",
    )


def out_of_range(name: str, value: Json, wanted: str) -> InvalidRequest:
    """Returns the 400 for a value beyond a limit."""
    return InvalidRequest(
        f"Invalid value for '{name}': expected {wanted}, but got {shown(value)} instead.",
        param=name,
        code="invalid_value",
    )


def whole(value: Json) -> Json:
    """Returns a number without a fraction as an integer (R19), and any other value as it is."""
    return int(value) if type(value) is float and value.is_integer() else value


def integer(least: int, most: int, *, hint: str = "") -> Kind:
    """An integer from ``least`` to ``most``. A refusal of others ends with the hint."""
    expected = f"an integer from {least} to {most}"
    if most == INT64 - 1:
        expected = "a 64-bit integer" + (f" of at least {least}" if least > -INT64 else "")
    expected += hint

    def parse(name: str, value: Json) -> int:
        value = whole(value)
        if type(value) is not int:
            raise wrong_type(name, value, "an integer")
        if not least <= value <= most:
            raise out_of_range(name, value, expected)
        return value

    return Kind(parse, {"type": "integer", "minimum": least, "maximum": most})


def number(least: float, most: float) -> Kind:
    """A finite number from ``least`` to ``most``."""

    def parse(name: str, value: Json) -> float:
        if type(value) not in {int, float}:
            raise wrong_type(name, value, "a number")
        # NaN and infinities are not between two limits.
        if not least <= value <= most:
            raise out_of_range(name, value, f"a number from {least:g} to {most:g}")
        return float(value)

    return Kind(parse, {"type": "number", "minimum": least, "maximum": most})


def _boolean(name: str, value: Json) -> bool:
    if not isinstance(value, bool):
        raise wrong_type(name, value, "a boolean")
    return value


def _string(name: str, value: Json) -> str:
    if not isinstance(value, str):
        raise wrong_type(name, value, "a string")
    return value


BOOLEAN = Kind(_boolean, {"type": "boolean"})
STRING = Kind(_string, {"type": "string"})


def _salt(name: str, value: Json) -> str:
    text = _string(name, value)
    if not text:
        raise out_of_range(name, text, "a string of at least 1 character")
    return text


SALT = Kind(_salt, {"type": "string", "minLength": 1})


def recorded(most: int) -> Kind:
    """A string of at most ``most`` characters that the ledger's database can store (R16)."""

    def parse(name: str, value: Json) -> str:
        text = _string(name, value)
        if len(text) > most or "\0" in text:
            wanted = f"at most {most} characters and no null character, because it is recorded"
            raise out_of_range(name, text, wanted)
        return text

    return Kind(parse, {"type": "string", "maxLength": most, "pattern": "^[^\\u0000]*$"})


def log_probabilities(most: int) -> Kind:
    """A number of alternatives. ``true`` means 0, ``false`` means none (R10)."""
    count = integer(0, most)

    def parse(name: str, value: Json) -> int | None:
        if isinstance(value, bool):
            return 0 if value else None
        parsed: int = count.parse(name, value)
        return parsed

    return Kind(parse, {"anyOf": [count.schema, {"type": "boolean"}]})


def strings(most: int, characters: int) -> Kind:
    """An array of at most ``most`` strings of 1 to ``characters`` characters."""
    wanted = f"an array of at most {most} strings of 1 to {characters} characters"

    def parse(name: str, value: Json) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise wrong_type(name, value, wanted)
        if len(value) > most:
            raise out_of_range(name, value, wanted)
        for item in value:
            if not isinstance(item, str):
                raise wrong_type(name, item, wanted)
            if not 1 <= len(item) <= characters:
                raise out_of_range(name, item, wanted)
        return tuple(dict.fromkeys(value))

    item = {"type": "string", "minLength": 1, "maxLength": characters}
    return Kind(parse, {"type": "array", "items": item, "maxItems": most})


def _count_or_fit(name: str, value: Json) -> int:
    count: int = integer(-1, INT64 - 1).parse(name, value)
    if count == 0:
        raise out_of_range(name, value, "-1, or an integer of at least 1")
    return count


COUNT_OR_FIT = Kind(
    _count_or_fit,
    {"anyOf": [integer(1, INT64 - 1).schema, {"const": -1, "type": "integer"}]},
)
"""A number of tokens of at least 1; -1 means as many as fit."""


def stop_strings(most: int) -> Kind:
    """A string or at most ``most`` strings, none of them empty (R12, H13)."""

    def parse(name: str, value: Json) -> tuple[str, ...]:
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list):
            raise wrong_type(name, value, "a string or an array of strings")
        if len(stops) > most:
            raise InvalidRequest(
                f"Invalid '{name}': array too long. Expected an array with maximum length {most}, "
                f"but got an array with length {len(stops)} instead.",
                param=name,
                code="array_above_max_length",
            )
        for stop in stops:
            if not isinstance(stop, str):
                raise wrong_type(name, stop, "a string or an array of strings")
            if not stop:
                raise out_of_range(name, stop, "strings of at least 1 character")
        return tuple(dict.fromkeys(stops))

    stop = {"type": "string", "minLength": 1}
    return Kind(parse, {"anyOf": [stop, {"type": "array", "items": stop, "maxItems": most}]})


def _logit_bias(name: str, value: Json) -> tuple[tuple[int, float], ...]:
    """Parse biases. Returns pairs of token id and bias, by id; ``plan`` checks the ids (R14)."""
    if not isinstance(value, dict):
        raise wrong_type(name, value, "an object of token ids and numbers")
    parse = _BIAS.parse
    pairs: dict[int, float] = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) < len(str(INT64))):
            raise InvalidRequest(
                f"Invalid key in '{name}': {shown(key)} is no token id; keys are token ids "
                "written as decimal integers.",
                param=name,
                code="invalid_value",
            )
        if int(key) in pairs:
            raise duplicate(name, key)
        pairs[int(key)] = parse(name, bias)
    return tuple(sorted(pairs.items()))


_BIAS = number(-100, 100)
LOGIT_BIAS = Kind(
    _logit_bias,
    {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]+$"},
        "additionalProperties": _BIAS.schema,
    },
)


def switches(known: Mapping[str, str]) -> Kind:
    """An object of booleans that are off by default. ``known`` maps their names to their help."""

    def parse(name: str, value: Json) -> Mapping[str, bool]:
        if not isinstance(value, dict):
            raise wrong_type(name, value, "an object")
        for key in value:
            if key not in known:
                raise unrecognized(f"{name}.{key}")
        given = [key for key in known if value.get(key) is not None]
        return {key: _boolean(f"{name}.{key}", value[key]) for key in given}

    properties = {
        key: {**_or_null(BOOLEAN.schema), "description": text, "default": False}
        for key, text in known.items()
    }
    return Kind(parse, {"type": "object", "additionalProperties": False, "properties": properties})


def unrecognized(name: str) -> InvalidRequest:
    """Returns the 400 for a field that the server does not know (R18)."""
    short = name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}…"
    return InvalidRequest(f"Unrecognized request argument supplied: {short}", param=short)


def not_offered(name: str, reason: str) -> InvalidRequest:
    """Returns the 400 for a field, or a value of one, that other servers have."""
    return InvalidRequest(
        f"Unrecognized request argument supplied: {name}. It is not offered here; {reason}",
        param=name,
    )


def duplicate(field: str, inner: str | None = None) -> InvalidRequest:
    """Returns the 400 for a name that stands twice: a field's, or ``inner`` in its value."""
    param = written = field[:_SHOWN_CHARACTERS]
    if inner is not None:
        written = f"{param}.{inner[:_SHOWN_CHARACTERS]}"
        param = param.partition(".")[0]
    return InvalidRequest(f"Duplicate request argument supplied: {written}", param=param)
