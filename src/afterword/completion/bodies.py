"""Reads a body as a JSON object, and refuses what would be ignored in it (H2, R19)."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import msgspec

from afterword.completion.fields import Json, duplicate
from afterword.completion.long_bodies import Unreadable, read_object
from afterword.core.errors import InvalidRequest
from afterword.core.repeated import repeated_name

_UNPARSABLE = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
    "your HTTP library correctly. The OpenAI API expects a JSON payload, but what was sent was "
    "not valid JSON.)"
)
LONG_BODY_BYTES = 64 * 1024
"""Longer bodies are read in slices, and have a planning thread of their own."""


def parse_object(body: bytes, known: Mapping[str, object]) -> dict[str, Json]:
    """Parse a JSON object. ``known`` has the names of the fields that it may have.

    Raises ``InvalidRequest`` for anything else (H2), for a number beyond all limits, for deeper
    values than any request needs, and for a repeated key, because one of its values would be
    ignored (R19).
    """
    try:
        if len(body) > LONG_BODY_BYTES:
            return read_object(body)
        return _decoded(body, known)
    except Unreadable:
        raise InvalidRequest(_UNPARSABLE) from None


def _decoded(body: bytes, known: Mapping[str, object]) -> dict[str, Json]:
    try:
        return _short_object(body, known)
    except (msgspec.DecodeError, ValueError, RecursionError):
        # It says why, and which field.
        return read_object(body)


def _short_object(body: bytes, known: Mapping[str, object]) -> dict[str, Json]:
    raw = msgspec.json.decode(body)
    if not isinstance(raw, dict):
        raise Unreadable
    # A field of another server may stand twice, too; all names are compared then.
    if not raw.keys() <= known.keys() or _may_repeat(body, {name.encode() for name in known}):
        _refuse_duplicates(body)
    inner = [name for name, value in raw.items() if _has_objects(value)]
    if inner:
        written = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        for name in inner:
            _refuse_duplicates(bytes(written[name]), name)
    return raw


def _has_objects(value: Json) -> bool:
    """Whether a field may have names in it. An array is of one kind, or a parser refuses it."""
    return isinstance(value[0] if isinstance(value, list) and value else value, dict)


def _may_repeat(body: bytes, known: AbstractSet[bytes]) -> bool:
    """Whether a known key may stand twice. Cheap, so True in doubt."""
    if b"\\" in body:
        return b"\\u" in body or any(body.count(b'"%b"' % name) > 1 for name in known)
    # Without escapes every second part between quotes is a string.
    names = [string for string in body.split(b'"')[1::2] if string in known]
    return len(names) > len(set(names))


def _refuse_duplicates(body: bytes, field: str | None = None) -> None:
    """Raises ``InvalidRequest`` for a name that stands twice (R19): of the body, or in a field."""
    name = repeated_name(body, nested=field is not None)
    if name is not None:
        raise duplicate(name) if field is None else duplicate(field, name)
