"""A file of SQLite, and whether it is still the one that was opened.

SQLite goes on writing into a file that was moved or removed, where nobody reads it, and takes the
``-wal`` that one file left for that of the file in its place.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import TypeAlias

from afterword.ledger.folder import companions

Identity: TypeAlias = tuple[int, int]
"""Device and inode."""
_HEADER_BYTES = 32
"""Of a ``-wal``. It has random numbers, so no two are equal."""


class SqliteFile:
    """The file of an engine. Its methods are safe from any thread.

    Invariant: ``_log_header`` is that of ``_opened``'s ``-wal``, as of the last transaction.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log_file = path.with_name(f"{path.name}-wal")
        self._opened: Identity | None = None
        self._log_header = b""
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Called before a connection opens the file.

        If it has taken another one's place, what the other left next to it is removed. Raises
        ``sqlite3.OperationalError`` if there is no file: SQLite would make an empty one.
        """
        found = self.identity()
        if found is None:
            raise sqlite3.OperationalError("unable to open database file")
        with self._lock:
            if self._opened not in {None, found} and self._log_header == self._read_header() != b"":
                for path in companions(self._path):
                    path.unlink(missing_ok=True)
            self._opened = found

    def is_still(self, opened: Identity | None) -> bool:
        """Called before a transaction. Returns whether it would write to the file of this name."""
        if self.identity() != opened:
            return False
        with self._lock:
            self._log_header = self._read_header()
        return True

    def identity(self) -> Identity | None:
        """Returns which file has the name now; None if there is none."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _read_header(self) -> bytes:
        """Returns the start of the ``-wal``. SQLite locks other files, so it may be opened here."""
        try:
            with self._log_file.open("rb", buffering=0) as file:
                return file.read(_HEADER_BYTES)
        except OSError:
            return b""


def remove_leftovers(path: Path) -> None:
    """Remove what a file that is gone left: SQLite would take it for that of the next one."""
    # In this order: others may make the file, and then the rest, meanwhile.
    left = [one for one in companions(path) if one.exists()]
    if left and not path.exists():
        for one in left:
            one.unlink(missing_ok=True)
