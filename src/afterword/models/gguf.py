"""Reads and checks headers of GGUF files, so that native code sees only complete, valid files.

Source of the format: ggml's ``docs/gguf.md``. No weight is read. No number is trusted: every
length is checked against the size of the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import msgspec

from afterword.core.errors import ConfigError
from afterword.models.formats import needs_f32

Value: TypeAlias = int | float | bool | str

_MAGIC = b"GGUF"
_LENGTH = struct.Struct("<Q")
_VOCABULARY = "tokenizer.ggml.tokens"
_VERSIONS = (2, 3)
_BIG_ENDIAN = tuple(int.from_bytes(version.to_bytes(4, "big"), "little") for version in _VERSIONS)
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_MOST_DEPTH = 4
_MOST_KEY_BYTES = 65535
# Name, values per block and bytes per block of each tensor type, by its number in ggml.h.
_BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip


class Header(msgspec.Struct, frozen=True):
    """The header of a file, or of a model in ``parts`` files with the tensors of all of them.

    ``metadata`` has no arrays; ``array_lengths`` has their lengths. ``formats`` counts the values
    (weights) of each tensor type, ``tensors`` the tensors. ``not_in_f32`` says which tensor has
    another format although the library computes with it in F32 only; None if none has.
    """

    metadata: Mapping[str, Value]
    array_lengths: Mapping[str, int]
    formats: Mapping[str, int]
    tensors: int
    file_bytes: int
    parts: int = 1
    not_in_f32: str | None = None

    @property
    def architecture(self) -> str:
        """The architecture by its name in ggml, such as llama or qwen2."""
        return str(self.metadata["general.architecture"])

    @property
    def context_tokens(self) -> int | None:
        """The context that the model was trained for, in tokens; None if the file has no value."""
        value = self.metadata.get(f"{self.architecture}.context_length")
        return value if isinstance(value, int) else None

    @property
    def vocabulary(self) -> int:
        """The number of tokens; 0 in a file without a vocabulary."""
        return self.array_lengths.get(_VOCABULARY, 0)

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(self.formats.values())


def read_file_header(path: Path) -> Header:
    """Returns the header of one file, which may be a part of a model, or no model at all.

    Raises ``ConfigError`` if the file cannot be read, is no GGUF file, is broken, or is shorter
    than its own table of tensors requires.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size == 0:
                raise ConfigError(f"{path}: is no GGUF file")
            # A vocabulary has 50,000 strings or more; one read call for each is slow.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _HeaderReader(data, path).header()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


class _HeaderReader:
    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 0
        self._size = len(data)

    def header(self) -> Header:
        if self._size < len(_MAGIC) or self._take(len(_MAGIC)) != _MAGIC:
            raise ConfigError(f"{self._path}: is no GGUF file")
        version = self._number("I")
        if version in _BIG_ENDIAN:
            raise ConfigError(f"{self._path}: is a GGUF file for big-endian processors")
        if version not in _VERSIONS:
            raise self._broken(f"version {version} is none of {_VERSIONS}")
        tensors, pairs = self._number("Q"), self._number("Q")
        metadata: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        for _ in range(pairs):
            key, kind = self._key(), self._number("I")
            if key in metadata or key in lengths:
                raise self._broken(f"key {key[:80]!r} occurs twice")
            if kind == _ARRAY and key == _VOCABULARY:
                lengths[key] = self._vocabulary()
            elif kind == _ARRAY:
                lengths[key] = self._skip_array(0)
            else:
                metadata[key] = self._value(kind)
        formats, not_in_f32 = self._tensors(tensors, metadata.get("general.alignment", 32))
        return Header(metadata, lengths, formats, tensors, self._size, not_in_f32=not_in_f32)

    def _tensors(self, count: int, alignment: Value) -> tuple[dict[str, int], str | None]:
        """Read the table of tensors; check that the file is long enough for all of them.

        Returns ``formats`` and ``not_in_f32`` of the header.
        """
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
            raise self._broken(f"general.alignment is {str(alignment)[:80]}")
        formats: dict[str, int] = {}
        not_in_f32: str | None = None
        end = 0
        for _ in range(count):
            name, dimensions = self._key(), self._number("I")
            if dimensions > _MOST_DIMENSIONS:
                raise self._broken(f"tensor {name[:80]!r} has {dimensions} dimensions")
            shape = [self._number("Q") for _ in range(dimensions)]
            values = math.prod(shape)
            kind, offset = self._number("I"), self._number("Q")
            if kind not in _BLOCKS:
                raise self._broken(f"tensor {name[:80]!r} has the unknown type {kind}")
            label, block_values, block_bytes = _BLOCKS[kind]
            formats[label] = formats.get(label, 0) + values
            if not_in_f32 is None and label != "F32" and needs_f32(name, shape):
                not_in_f32 = f"tensor {name[:80]!r} is in {label}"
            end = max(end, offset + -(-values // block_values) * block_bytes)
        start = -(-self._at // alignment) * alignment
        if start + end > self._size:
            raise ConfigError(
                f"{self._path}: is truncated: it has {self._size} bytes of at least {start + end}"
            )
        return formats, not_in_f32

    def _key(self) -> str:
        return self._string(_MOST_KEY_BYTES)

    def _string(self, limit: int | None = None) -> str:
        size = self._number("Q")
        if limit is not None and size > limit:
            raise self._broken(f"a name has {size} bytes")
        try:
            return self._take(size).decode()
        except UnicodeDecodeError as error:
            raise self._broken("a text is not UTF-8") from error

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._string()
        if kind not in _SCALARS:
            raise self._broken(f"a value has the unknown type {kind}")
        return self._number(_SCALARS[kind])

    def _vocabulary(self) -> int:
        """Count the tokens. Equal names are refused, because the library crashes on them.

        For the library a name ends at its first null character.
        """
        kind, count = self._number("I"), self._number("Q")
        if kind != _STRING:
            raise self._broken(f"the vocabulary has the type {kind}")
        seen: set[bytes] = set()
        for token, (start, end) in enumerate(self._strings(count)):
            name = self._data[start:end].partition(b"\0")[0]
            if name in seen:
                raise self._broken(f"token {token} has the name of another")
            if name:
                seen.add(name)
        return count

    def _skip_array(self, depth: int) -> int:
        kind, count = self._number("I"), self._number("Q")
        if kind in _SCALARS:
            self._skip(count * struct.calcsize(f"<{_SCALARS[kind]}"))
        elif kind == _STRING:
            for _ in self._strings(count):
                pass
        elif kind == _ARRAY and depth < _MOST_DEPTH:
            for _ in range(count):
                self._skip_array(depth + 1)
        else:
            raise self._broken(f"an array has the unknown type {kind}")
        return count

    def _strings(self, count: int) -> Iterator[tuple[int, int]]:
        """Yields start and end of each of the next ``count`` strings, as offsets in the file."""
        data, at, size = self._data, self._at, self._size
        unpack, width = _LENGTH.unpack_from, _LENGTH.size
        for _ in range(count):
            start = at + width
            at = start + unpack(data, at)[0] if start <= size else size + 1
            if at > size:
                raise self._truncated()
            yield start, at
        self._at = at

    def _number(self, code: str) -> int:
        number: int = struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]
        return number

    def _take(self, size: int) -> bytes:
        start = self._at
        self._skip(size)
        return self._data[start : self._at]

    def _skip(self, size: int) -> None:
        if size > self._size - self._at:
            raise self._truncated()
        self._at += size

    def _truncated(self) -> ConfigError:
        return ConfigError(f"{self._path}: is truncated: the header ends after {self._size} bytes")

    def _broken(self, reason: str) -> ConfigError:
        return ConfigError(f"{self._path}: is a broken GGUF file: {reason}")
