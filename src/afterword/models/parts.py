"""Models in parts: several GGUF files with the names and numbers of llama.cpp's ``gguf-split``.

The first part has the model's metadata; the others have tensors only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from afterword.core.errors import ConfigError
from afterword.models.gguf import Header, read_file_header
from afterword.models.kinds import is_no_continuation
from afterword.models.numbers import wrong_format, wrong_number

CHECKS = 7
"""The version of the checks of a header; increase it with every new check."""
_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_MOST_PARTS = 2**16


class PartName(msgspec.Struct, frozen=True):
    """The name of a part; ``number`` counts from 1 to ``count``."""

    stem: str
    number: int
    count: int

    def of(self, number: int) -> str:
        """Returns the name of another part of the model."""
        return f"{self.stem}-{number:05}-of-{self.count:05}.gguf"

    def all(self) -> Sequence[str]:
        """Returns the names of all parts in their order."""
        return [self.of(number) for number in range(1, self.count + 1)]


def part_name(name: str) -> PartName | None:
    """Returns the parsed name of a part; None if the name is that of a whole model."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    said = PartName(found[1], int(found[2]), int(found[3]))
    return said if said.count > 1 and 1 <= said.number <= said.count else None


def part_paths(path: Path) -> Sequence[Path]:
    """Returns the files of a model with the first file ``path``.

    Raises ``ConfigError`` if one is missing, and as ``expected_parts`` does.
    """
    parts = expected_parts(path)
    for number, part in enumerate(parts[1:], 2):
        _check_there(path, part, number, len(parts))
    return parts


def expected_parts(path: Path) -> Sequence[Path]:
    """Returns the paths of all files of a model with the first file ``path``, which must exist.

    Raises ``ConfigError`` if ``path`` has the name of a part and cannot be read, or is not part 1.
    """
    said = part_name(path.name)
    if said is None:
        return (path,)
    header = read_file_header(path)
    _check_first(path, header)
    if _count(header) == 1:
        return (path,)
    return tuple(path.with_name(name) for name in said.all())


def read_header(path: Path) -> Header:
    """Returns the header of a model with the first file ``path`` and the tensors of all its parts.

    Raises ``ConfigError`` if a file cannot be read, is no GGUF file, is broken, or is shorter than
    its own table of tensors requires, if a part is missing, or if the model cannot continue text.
    """
    header = read_file_header(path)
    _check_first(path, header)
    _check_kind(path, header)
    if (count := _count(header)) > 1:
        header = _with_other_parts(path, header, count)
    if not header.formats:
        raise ConfigError(f"{path}: has a vocabulary and no weights")
    if (wrong := wrong_format(header)) is not None:
        raise ConfigError(f"{path}: is a broken GGUF file: weights are in {wrong}")
    if header.not_in_f32 is not None:
        only = "and llama.cpp computes with it in F32 only"
        raise ConfigError(f"{path}: {header.not_in_f32}, {only}")
    return header


def _check_first(path: Path, header: Header) -> None:
    number = _whole(header, _NUMBER) or 0
    if number > 0:
        said = part_name(path.name)
        if said is not None and said.number != number + 1:
            raise _misnamed(path, header, said.number, said.count)
        first = "" if said is None else f", {said.of(1)}"
        raise ConfigError(
            f"{path}: is part {number + 1} of {_count(header)} of a model; begin with part 1{first}"
        )


def _count(header: Header) -> int:
    return _whole(header, _COUNT) or 1


def _check_kind(path: Path, header: Header) -> None:
    kind = is_no_continuation(header.metadata, header.array_lengths)
    if kind is not None:
        named = header.metadata.get("general.architecture")
        family = f" ({named[:80]})" if isinstance(named, str) and named not in kind else ""
        raise ConfigError(f"{path}: is {kind}{family}: it cannot continue text")
    if not isinstance(header.metadata.get("general.architecture"), str):
        raise ConfigError(f"{path}: is a broken GGUF file: general.architecture is missing")
    if not header.vocabulary:
        raise ConfigError(f"{path}: has no vocabulary: it cannot continue text")
    wrong = wrong_number(header)
    if wrong is not None:
        raise ConfigError(f"{path}: is a broken GGUF file: {wrong}")


def _with_other_parts(path: Path, first: Header, count: int) -> Header:
    said = part_name(path.name)
    if count > _MOST_PARTS:
        raise ConfigError(f"{path}: is a broken GGUF file: it says that it has {count} parts")
    if said is None or said.count != count:
        raise ConfigError(
            f"{path}: is part 1 of {count} of a model, and its name has to end in "
            f"-00001-of-{count:05}.gguf, as the others' names do"
        )
    parts = [first]
    for number in range(2, count + 1):
        part = path.with_name(said.of(number))
        _check_there(path, part, number, count)
        parts.append(_read_part(part, number, count))
    tensors, wanted = sum(part.tensors for part in parts), _whole(first, _TENSORS)
    if wanted is not None and tensors != wanted:
        raise ConfigError(
            f"{path}: its {count} parts have {tensors} tensors, and the first says {wanted}: "
            "they are not of one model"
        )
    formats: dict[str, int] = {}
    for part_header in parts:
        for name, values in part_header.formats.items():
            formats[name] = formats.get(name, 0) + values
    return msgspec.structs.replace(
        first,
        formats=formats,
        tensors=tensors,
        parts=count,
        not_in_f32=next((part.not_in_f32 for part in parts if part.not_in_f32), None),
        file_bytes=sum(part_header.file_bytes for part_header in parts),
    )


def _check_there(first: Path, part: Path, number: int, count: int) -> None:
    if not part.is_file():
        raise ConfigError(f"{first}: part {number} of {count} is missing: {part.name}")


def _read_part(path: Path, number: int, count: int) -> Header:
    header = read_file_header(path)
    said = _whole(header, _NUMBER), _whole(header, _COUNT)
    if None in said:
        raise ConfigError(f"{path}: does not say that it is part {number} of {count} of a model")
    if said != (number - 1, count):
        raise _misnamed(path, header, number, count)
    return header


def _misnamed(path: Path, header: Header, number: int, count: int) -> ConfigError:
    return ConfigError(
        f"{path}: says that it is part {(_whole(header, _NUMBER) or 0) + 1} of {_count(header)}, "
        f"and its name says part {number} of {count}"
    )


def _whole(header: Header, key: str) -> int | None:
    value = header.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
