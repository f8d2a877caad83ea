"""Parses long JSON in slices, because a parser in C holds the GIL to its end.

``msgspec`` parses each slice. What stands between slices is read here, so its cost is counted:
a body of more values than any request needs is refused where it has one too many.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator

import msgspec

from afterword.completion.fields import Json, duplicate
from afterword.core.errors import InvalidRequest

_SLICE_BYTES = 1 << 15
_MOST_VALUES = 1 << 16
"""The most values that are no numbers in an array, and no numbers by name."""
_MOST_BIASES = 1 << 19
"""No vocabulary has so many tokens."""
_MOST_IDS = 1 << 21
"""No model has so long a context, and to free more objects at once would hold the GIL."""
_MOST_NUMBERS = 1 << 22
_DEPTH = 200
"""Grammars of JSON Schemas take at most 128."""
_NUMBER_CHARACTERS = 1 << 16
_LONGEST_BYTES = 1 << 17
"""No number with the space around it is longer."""
_SPACES = re.compile(rb"[ \t\n\r]{0,65536}")
_OTHERS = re.compile(rb"true|false|null|[-+0-9.eE]{1,%d}" % _NUMBER_CHARACTERS)
_LONG_NUMBER = re.compile(rb"[-+0-9.eE]{%d}" % _NUMBER_CHARACTERS)
_NUMBER = re.compile(rb"[-\d]")
_VALID_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
# Whole characters and escapes; what a surrogate pair is made of stays together.
_UNITS = re.compile(
    rb'(?:[^\\"]{1,512}+|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|\\u[0-9a-fA-F]{4}'
    rb"|\\[^u]){1,512}+"
)
_NAMED_NUMBERS = re.compile(rb'\s{0,64}"[^"\\]{0,64}"\s{0,64}:\s{0,64}-?\d')


class Unreadable(ValueError):
    """The text is no JSON."""


def read_object(body: bytes) -> dict[str, Json]:
    """Returns the object that a body is, as ``msgspec`` does.

    Raises ``InvalidRequest`` for a repeated key in any object and for a number beyond all limits
    (R19), and for more values, deeper ones and longer numbers than any request needs. Raises
    ``Unreadable`` for what is no object.
    """
    return _Reader(body).read()


class _Reader:
    """One body and how much of it was read. Values are counted by kind."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0
        self._field = ""
        self._values = 0
        self._numbers = 0
        self._ends = {b"]": 0, b"}": 0}

    def read(self) -> dict[str, Json]:
        try:
            if self._sign() != b"{":
                raise Unreadable
            whole = self._object(0)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unreadable from error
        if self._sign():
            raise Unreadable
        return whole

    def _sign(self) -> bytes:
        """Returns the next byte that is no space; nothing at the end."""
        while True:
            spaces = _SPACES.match(self._body, self._at)
            if spaces is None or spaces.end() == self._at:
                return self._body[self._at : self._at + 1]
            self._at = spaces.end()

    def _expect(self, signs: bytes) -> bytes:
        """Returns the next sign, which is one of these, and steps over it."""
        sign = self._sign()
        if not sign or sign not in signs:
            raise Unreadable
        self._at += 1
        return sign

    def _value(self, depth: int) -> Json:
        sign = self._sign()
        self._values += 1
        if self._values > _MOST_VALUES:
            raise self._refused(f"more than {_MOST_VALUES} values")
        if sign == b'"':
            return self._string()
        if sign in (b"{", b"["):
            if depth == _DEPTH:
                raise self._too_deep()
            return self._object(depth + 1) if sign == b"{" else self._array(depth + 1)
        other = _OTHERS.match(self._body, self._at)
        if other is None:
            raise Unreadable
        self._at = other.end()
        if self._at - other.start() == _NUMBER_CHARACTERS:
            raise self._long_number()
        try:
            return msgspec.json.decode(other[0])
        except msgspec.DecodeError:
            if _VALID_NUMBER.fullmatch(other[0]):
                raise self._refused(f"a number beyond {sys.float_info.max:.2g}") from None
            raise

    def _object(self, depth: int) -> dict[str, Json]:
        self._at += 1
        values: dict[str, Json] = {}
        if self._sign() == b"}":
            self._at += 1
            return values
        if depth == 1 and _NAMED_NUMBERS.match(self._body, self._at):
            named = self._named_numbers()
            if named is not None:
                return named
        while True:
            if self._sign() != b'"':
                raise Unreadable
            name = self._string()
            if depth == 0:
                self._field = name
            if name in values:
                raise duplicate(self._field, name if depth else None)
            self._expect(b":")
            values[name] = self._value(depth)
            if self._expect(b",}") == b"}":
                return values

    def _named_numbers(self) -> dict[str, Json] | None:
        """Returns an object of numbers, each with its own name; None if it is another."""
        end = self._end(b"}")
        named: dict[str, Json] = {}
        for part in self._slices(self._at, end):
            try:
                values = msgspec.json.decode(b"{%b}" % part)
            except msgspec.DecodeError:
                return None
            if not values or not _are_numbers(values.values()):
                return None
            self._refuse_long_numbers(part)
            # A name that stands twice is found where names are read one by one.
            if part.count(b'"') != 2 * len(values) or not named.keys().isdisjoint(values):
                return None
            named |= values
            if len(named) > _MOST_BIASES:
                raise self._refused(f"more than {_MOST_BIASES} numbers by name")
        self._at = end + 1
        return named

    def _array(self, depth: int) -> list[Json]:
        self._at += 1
        if self._sign() == b"]":
            self._at += 1
            return []
        if _NUMBER.match(self._body, self._at):
            numbers = self._plain_numbers()
            if numbers is not None:
                return numbers
        values: list[Json] = []
        while True:
            values.append(self._value(depth))
            if self._expect(b",]") == b"]":
                return values

    def _plain_numbers(self) -> list[Json] | None:
        """Returns an array of numbers; None if there is something else in it."""
        end = self._end(b"]")
        numbers: list[Json] = []
        for part in self._slices(self._at, end):
            try:
                values = msgspec.json.decode(b"[%b]" % part)
            except msgspec.DecodeError:
                return None
            if not values or not _are_numbers(values):
                return None
            self._refuse_long_numbers(part)
            numbers += values
            if len(numbers) > _MOST_IDS:
                raise self._refused(f"more than {_MOST_IDS} numbers in an array")
        self._numbers += len(numbers)
        if self._numbers > _MOST_NUMBERS:
            raise self._refused(f"more than {_MOST_NUMBERS} numbers")
        self._at = end + 1
        return numbers

    def _end(self, sign: bytes) -> int:
        """Returns where a sign comes next, -1 if nowhere. Each is found once, however deep."""
        end = self._ends[sign]
        if 0 <= end < self._at:
            end = self._ends[sign] = self._body.find(sign, self._at)
        return end

    def _refuse_long_numbers(self, numbers: bytes) -> None:
        if len(numbers) >= _NUMBER_CHARACTERS and _LONG_NUMBER.search(numbers):
            raise self._long_number()

    def _slices(self, start: int, end: int) -> Iterator[bytes]:
        """Yields the text between two places, cut at commas.

        The last one is empty if there is no end, or if something is there that is too long.
        """
        while True:
            most = start + _SLICE_BYTES + _LONGEST_BYTES
            comma = -1 if end < 0 else self._body.find(b",", start + _SLICE_BYTES, min(most, end))
            if comma < 0:
                yield self._body[start:end] if 0 <= end <= most else b""
                return
            yield self._body[start:comma]
            start = comma + 1

    def _string(self) -> str:
        body, start = self._body, self._at + 1
        quote = body.find(b'"', start)
        if quote < 0:
            raise Unreadable
        if body.find(b"\\", start, quote) < 0:
            self._at = quote + 1
            return "".join(
                msgspec.json.decode(b'"%b"' % part) for part in self._characters(start, quote)
            )
        parts: list[str] = []
        while body[start : start + 1] != b'"':
            units = _UNITS.match(body, start)
            if units is None:
                raise Unreadable
            end = self._whole(units.end())
            parts.append(msgspec.json.decode(b'"%b"' % body[start:end]))
            start = end
        self._at = start + 1
        return "".join(parts)

    def _characters(self, start: int, end: int) -> Iterator[bytes]:
        """Yields text without escapes in slices of whole characters."""
        while start < end:
            cut = min(self._whole(start + _SLICE_BYTES), end)
            yield self._body[start:cut]
            start = cut

    def _whole(self, at: int) -> int:
        """Returns where the character ends that a place is in: 0 to 3 bytes on."""
        for place in range(at, min(at + 3, len(self._body))):
            if self._body[place] & 0xC0 != 0x80:  # as UTF-8 marks them
                return place
        return min(at + 3, len(self._body))

    def _too_deep(self) -> InvalidRequest | Unreadable:
        # A body that is cut off has fewer ends than beginnings: it is no JSON.
        ends = sum(self._body.count(sign, self._at) for sign in (b"}", b"]"))
        if ends <= _DEPTH + 1:
            return Unreadable()
        return self._refused(f"values that are more than {_DEPTH} levels deep")

    def _long_number(self) -> InvalidRequest:
        return self._refused(f"a number of {_NUMBER_CHARACTERS} or more characters")

    def _refused(self, what: str) -> InvalidRequest:
        return InvalidRequest(
            f"Invalid value for '{self._field[:40]}': the request has {what}.",
            param=self._field[:40],
            code="invalid_value",
        )


def _are_numbers(values: Iterable[Json]) -> bool:
    return {type(value) for value in values} <= {int, float}
