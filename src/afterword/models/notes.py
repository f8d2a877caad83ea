"""Notes: results of earlier starts on this machine, so that the next start is faster."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

_log = logging.getLogger("afterword.notes")
_Value = TypeVar("_Value")


def keep(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write a value as JSON, completely or not at all; log if that fails."""
    # Processes and threads may write the same note at once.
    part = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(msgspec.json.format(msgspec.json.encode(value)))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        _log.info("%s cannot be written: %s", path.name, error.strerror)


class Notes:
    """Values by everything that they depend on; each is a small JSON file in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str, origin: Sequence[object], kind: type[_Value]) -> _Value | None:
        """Returns the value for ``name`` and ``origin``; None if there is none of this type."""
        try:
            return msgspec.json.decode(self._path(name, origin).read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def write(self, name: str, origin: Sequence[object], value: Any) -> None:  # noqa: ANN401 - any JSON value
        """Keep a value for ``name`` and ``origin``; log if the folder cannot be written."""
        keep(self._path(name, origin), value)

    def forget(self) -> int:
        """Remove all notes. Returns the bytes freed."""
        freed = 0
        for path in self.folder.glob("*.json"):
            freed += path.stat().st_size
            path.unlink()
        return freed

    def _path(self, name: str, origin: Sequence[object]) -> Path:
        key = hashlib.sha256("|".join(map(str, origin)).encode()).hexdigest()
        return self.folder / f"{name}-{key[:16]}.json"
