"""Kinds of request fields that have token ids: prompts, and lists of ids (R2, R19)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias, TypeVar

from afterword.completion.fields import STRING, Json, Kind, Schema, out_of_range, wrong_type

T = TypeVar("T")
Prompt: TypeAlias = str | tuple[int, ...]

_SLICE_VALUES = 1 << 15
_ID: Schema = {"type": "integer", "minimum": 0}
_PROMPT = "a string, an array of strings, an array of token ids, or an array of such arrays"


def prompts(most: int) -> Kind:
    """One prompt or an array of at most ``most``: text or token ids (R2).

    The parser returns the prompts in order. ``plan`` checks the ids against the vocabulary.
    """

    def parse(name: str, value: Json) -> tuple[Prompt, ...]:
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list):
            raise wrong_type(name, value, _PROMPT)
        if not value:
            raise out_of_range(name, value, "an array of at least 1 item")
        kinds = _kinds(value)
        if kinds <= {int, float}:
            return (token_ids(name, value),)
        if len(value) > most:
            raise out_of_range(name, value, f"an array of at most {most} prompts")
        if kinds == {str}:
            return tuple(value)
        if kinds == {list}:
            return tuple(token_ids(name, ids) for ids in value)
        raise wrong_type(name, value, f"{_PROMPT}, not a mixture")

    many = {"type": "array", "minItems": 1, "maxItems": most}
    ids = {"type": "array", "items": _ID, "minItems": 1}
    text = STRING.schema
    return Kind(parse, {"anyOf": [text, {**many, "items": text}, ids, {**many, "items": ids}]})


def token_ids(name: str, value: Sequence[Json]) -> tuple[int, ...]:
    """Parse an array of at least one token id."""
    if not value:
        raise out_of_range(name, list(value), "arrays of at least 1 token id")
    if _kinds(value) != {int}:
        value = _integers(name, value)
    return _checked_ids(name, value)


def _integers(name: str, value: Sequence[Json]) -> Sequence[int]:
    """Returns numbers without a fraction as integers (R19)."""
    whole = [type(item) is int or (isinstance(item, float) and item.is_integer()) for item in value]
    if not all(whole):
        raise wrong_type(name, list(value), "token ids, which are integers")
    return list(map(int, value))


def _checked_ids(name: str, value: Sequence[int]) -> tuple[int, ...]:
    least = min(map(min, slices(value)))
    if least < 0:
        raise out_of_range(name, least, "token ids of at least 0")
    return tuple(value)


def _kinds(values: Sequence[Json]) -> set[type]:
    """Returns the types of the values."""
    kinds = set[type]()
    for part in slices(values):
        kinds.update(map(type, part))
    return kinds


def slices(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yields the values in slices, because a single call holds the GIL to its end."""
    for start in range(0, len(values), _SLICE_VALUES):
        yield values[start : start + _SLICE_VALUES]


def id_list(*, least: int = 0, most: int | None = None) -> Kind:
    """An array of ``least`` to ``most`` token ids, without repeats in the result.

    Without ``most`` the vocabulary and the size of a body are the only bounds.
    """
    expected = f"an array of {least} to {most} token ids"
    schema: Schema = {"type": "array", "items": _ID, "minItems": least}
    if most is None:
        expected = f"an array of at least {least} token id{'' if least == 1 else 's'}"
    else:
        schema["maxItems"] = most

    def parse(name: str, value: Json) -> tuple[int, ...]:
        ids = _id_list(name, value)
        if len(ids) < least or (most is not None and len(ids) > most):
            raise out_of_range(name, value, expected)
        return tuple(dict.fromkeys(ids))

    return Kind(parse, schema)


def _id_list(name: str, value: Json) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise wrong_type(name, value, "an array of token ids")
    return token_ids(name, value) if value else ()


TOKEN_IDS = Kind(_id_list, {"type": "array", "items": _ID})
