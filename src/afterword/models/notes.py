"""What was found out on this machine, kept so that the next start need not find it out again."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

_log = logging.getLogger("afterword.notes")
_Value = TypeVar("_Value")


def keep(path: Path, value: Any) -> None:  # noqa: ANN401 - any that JSON has
    """Write a value whole or not at all; where it cannot be written it is found out again."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.format(msgspec.json.encode(value)))
        part.replace(path)
    except OSError as error:
        _log.info("%s is not kept: %s", path.name, error.strerror)


class Notes:
    """Values by everything that they depend on, a small file for each in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str, origin: Sequence[object], kind: type[_Value]) -> _Value | None:
        """What was kept; None where nothing was, or nothing that can be read."""
        try:
            return msgspec.json.decode(self._path(name, origin).read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, name: str, origin: Sequence[object], value: Any) -> None:  # noqa: ANN401 - any that JSON has
        """Keep a value; where the folder cannot be written it is found out again."""
        keep(self._path(name, origin), value)

    def forget(self) -> int:
        """Remove everything; the bytes freed."""
        freed = 0
        for path in self._folder.glob("*.json"):
            freed += path.stat().st_size
            path.unlink()
        return freed

    def _path(self, name: str, origin: Sequence[object]) -> Path:
        key = hashlib.sha256("|".join(map(str, origin)).encode()).hexdigest()
        return self._folder / f"{name}-{key[:16]}.json"
