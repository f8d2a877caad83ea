"""Digests: the SHA-256 of a file, and one for a model in parts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from afterword.core.errors import ConfigError
from afterword.models.notes import keep

_IN_PARTS = "parts"
"""Stands in the key of a model's digest, where a file's key has the time of its change."""


class Digests:
    """SHA-256 of files, kept in the JSON file ``path`` by file, size and time of change."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, parts: Sequence[Path]) -> str:
        """Returns 64 hex digits: the SHA-256 of a file, or of the digests of parts in their order.

        Raises ``ConfigError`` if a file cannot be read.
        """
        digests = [self._of_file(path) for path in parts]
        if len(digests) == 1:
            return digests[0]
        digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()
        key = f"{_name(parts[0].resolve())}:{len(parts)}:{_IN_PARTS}"
        known = self._load()
        if known.get(key) != digest:
            keep(self._path, {**known, key: digest})
        return digest

    def _of_file(self, path: Path) -> str:
        try:
            real = path.resolve()
            stat = real.stat()
            key = f"{_name(real)}:{stat.st_size}:{stat.st_mtime_ns}"
            known = self._load()
            if key not in known:
                with real.open("rb") as file:
                    known[key] = hashlib.file_digest(file, "sha256").hexdigest()
                # The next start does not read the whole file again.
                keep(self._path, known)
            return known[key]
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error

    def _load(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            # What cannot be read, as a file of another user, is computed again.
            return {}


def _name(path: Path) -> str:
    """Returns a path as text that JSON can have: names of files may be bytes of any kind."""
    return os.fsencode(path).decode(errors="backslashreplace")
