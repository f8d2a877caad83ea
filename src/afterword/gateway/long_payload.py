"""Reads a long JSON answer in slices, because a decoder in C holds the GIL to its end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain, islice
from types import NoneType
from typing import Any, TypeAlias, TypeVar, get_args, get_origin, get_type_hints, overload

import msgspec

T = TypeVar("T")
Read: TypeAlias = Callable[[bytes], Any]
_Path: TypeAlias = tuple[str | int, ...]

LONG_BYTES = 1 << 18
"""Of a payload. A thread reads it."""
_SLICE_BYTES = 1 << 16
_MOST_DEPTH = 16
_SCALARS = frozenset({int, float, str, NoneType})
_FLAT = rb'[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_INNER = _FLAT
for _ in range(4):  # deeper than an entry of any server's log-probabilities
    _INNER = rb"%b|[\[{](?:%b)*+[\]}]" % (_FLAT, _INNER)
_ITEM = rb'(?:[^",\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{](?:%b)*+[\]}])++' % _INNER
_ITEMS = re.compile(rb"(?:%b,)*+" % _ITEM, re.DOTALL)
_LAST = re.compile(rb"(?:%b)?+\]" % _ITEM, re.DOTALL)
_SHORT = re.compile(rb"%b(?=[,\]}])" % _ITEM, re.DOTALL)
_KEY = re.compile(rb'\s*+("[^"\\]*+(?:\\.[^"\\]*+)*+")\s*+:', re.DOTALL)
_SIGN = re.compile(rb"\s*+(.)", re.DOTALL)
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_decode_any = msgspec.json.Decoder().decode
_decode_raw = msgspec.json.Decoder(list[msgspec.Raw]).decode


class LongPayload:
    """The bytes of a long answer. It is no ``bytes``, so no decoder takes it whole by mistake."""

    def __init__(self, text: bytes | bytearray) -> None:
        self.text = text

    def __bytes__(self) -> bytes:
        return bytes(self.text)


class LongArray(Sequence[T]):
    """The items of an array, decoded slice by slice, each time anew.

    All of them at once would be so many objects that to free them holds the GIL for long.
    """

    def __init__(
        self, slices: Callable[[], Iterator[bytes]], read: Callable[[bytes], list[T]],
        start: int = 0, stop: int | None = None,
    ) -> None:  # fmt: skip
        self._slices = slices
        self._read = read
        self._start = start
        self._stop = stop

    def __iter__(self) -> Iterator[T]:
        items = chain.from_iterable(map(self._read, self._slices()))
        return islice(items, self._start, self._stop)

    def __len__(self) -> int:
        if self._stop is None:
            self._stop = sum(len(_decode_raw(part)) for part in self._slices())
        return max(self._stop - self._start, 0)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> LongArray[T]: ...
    def __getitem__(self, at: int | slice) -> T | LongArray[T]:
        """Returns an item, or the items of a slice without a step."""
        if isinstance(at, int):
            return next(iter(self[at : at + 1 or None]))
        start, stop, _ = at.indices(len(self))
        return LongArray(
            self._slices, self._read, self._start + start, self._start + max(start, stop)
        )


class _NotSlicedError(ValueError):
    """The text is not JSON, or none of the kind that servers send."""


class _Cut:
    """A long array: its place in the whole, and the slices of its text."""

    def __init__(self, text: bytes | bytearray, path: _Path, runs: list[tuple[int, int]]) -> None:
        self.path = path
        self._text = text
        self._runs = runs

    def slices(self) -> Iterator[bytes]:
        """Yields arrays that are one slice each."""
        return (b"[%b]" % bytes(self._text[start:end]) for start, end in self._runs)


class _Outline:
    """Walks through a long text and takes the long arrays out of it.

    Invariant: what ``whole`` returns is JSON if the text is, with ``[]`` in the place of each cut.
    """

    def __init__(self, text: bytes | bytearray) -> None:
        self.cuts: list[_Cut] = []
        self._text = text
        self._at = 0
        self._parts: list[bytes] = []

    def whole(self) -> bytes:
        """Returns the outline. Raises ``_NotSlicedError``."""
        self._value(())
        self._to(len(self._text))
        return b"".join(self._parts)

    def _to(self, end: int) -> None:
        self._parts.append(bytes(self._text[self._at : end]))
        self._at = end

    def _sign(self, expected: bytes) -> bytes:
        found = _SIGN.match(self._text, self._at)
        if found is None or found[1] not in expected:
            raise _NotSlicedError
        self._to(found.end())
        return bytes(found[1])

    def _value(self, path: _Path) -> None:
        if len(path) > _MOST_DEPTH:
            raise _NotSlicedError
        short = _SHORT.match(self._text, self._at, self._at + _SLICE_BYTES)
        if short is not None:
            self._to(short.end())
            return
        sign = self._sign(b'{["')
        if sign == b"{":
            self._object(path)
        elif sign == b"[":
            self._array(path)
        else:
            found = _STRING.match(self._text, self._at - 1)
            if found is None:
                raise _NotSlicedError
            self._to(found.end())

    def _object(self, path: _Path) -> None:
        while True:
            key = _KEY.match(self._text, self._at)
            if key is None:
                raise _NotSlicedError
            self._to(key.end())
            try:
                name = _decode_any(key[1])
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise _NotSlicedError from None
            self._value((*path, name))
            if self._sign(b",}") == b"}":
                return

    def _array(self, path: _Path) -> None:
        start, runs = self._at, list[tuple[int, int]]()
        while True:
            limit = self._at + _SLICE_BYTES
            items = _ITEMS.match(self._text, self._at, limit)
            if items is not None and items.end() > self._at:
                runs.append((self._at, items.end() - 1))
                self._at = items.end()
                continue
            last = _LAST.match(self._text, self._at, limit)
            if last is None:
                self._at = start
                self._long_items(path)
                return
            runs.append((self._at, last.end() - 1))
            # Only a field can be set later; an array in an array has few items.
            if last.end() - start > _SLICE_BYTES and path and isinstance(path[-1], str):
                self._parts.append(b"]")
                self._at = last.end()
                self.cuts.append(_Cut(self._text, path, runs))
            else:
                self._at = start
                self._to(last.end())
            return

    def _long_items(self, path: _Path) -> None:
        """Walk through an array with items that are longer than a slice."""
        for at in range(len(self._text)):
            self._value((*path, at))
            if self._sign(b",]") == b"]":
                return


def read_long(payload: LongPayload, wanted: type[T], reading: Callable[[Any], Read]) -> T:
    """Returns a long JSON value as ``wanted``, a struct; ``reading`` returns a type's decoder.

    Long arrays of numbers or texts are lists, and others are ``LongArray``.
    """
    outline = _Outline(payload.text)
    try:
        value: T = reading(wanted)(outline.whole())
    except _NotSlicedError:
        return reading(wanted)(bytes(payload))  # type: ignore[no-any-return] # as wanted
    for cut in outline.cuts:
        _put(value, cut, reading)
    return value


def _put(value: object, cut: _Cut, reading: Callable[[Any], Read]) -> None:
    """Set the field whose array was cut out, if the structs have such a field."""
    *steps, name = cut.path or ("",)
    for step in steps:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) else None
        else:
            value = getattr(value, step, None)
    if not isinstance(value, msgspec.Struct) or name not in value.__struct_fields__:
        return
    array = _array_of(type(value), str(name))
    if array is None:
        return
    (item,) = get_args(array)
    items: LongArray[Any] = LongArray(cut.slices, reading(array))
    is_scalar = _SCALARS.issuperset(get_args(item) or (item,))
    setattr(value, str(name), list(items) if is_scalar else items)


@cache
def _array_of(struct: type, name: str) -> Any:  # noqa: ANN401 - a type
    """Returns the type of the array that a field may be; None if it may be none."""
    hint = get_type_hints(struct)[name]
    return next((one for one in (hint, *get_args(hint)) if get_origin(one) is list), None)
