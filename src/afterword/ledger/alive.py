"""Which processes of this machine live: each holds the lock of a file as long as it does.

A process that stands still (stopped, swapped out) keeps its lock, and so its reservations.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec
import sqlalchemy as sa

from afterword.ledger import journal
from afterword.ledger.folder import make_private
from afterword.ledger.presence import Presence

_SUFFIX = ".alive"


class AliveLock:
    """The lock of this process, from ``__enter__`` to ``__exit__``."""

    def __init__(self, folder: Path, process_id: str, presence: Presence) -> None:
        self._file = folder / f"{process_id}{_SUFFIX}"
        self._presence = presence
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Take the lock. Raises ``OSError``."""
        make_private(self._file.parent)
        unnamed = self._file.with_suffix(".new")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(unnamed, flags, 0o600)
        try:
            os.fchmod(self._descriptor, 0o600)
            # The file gets the name by which others find it after the lock is taken.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            os.write(self._descriptor, msgspec.json.encode(self._presence))
            unnamed.rename(self._file)
        except OSError:
            # A file that stays would refuse the next attempt.
            unnamed.unlink()
            os.close(self._descriptor)
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the lock back, and remove the file."""
        self._file.unlink(missing_ok=True)
        os.close(self._descriptor)


def alive_folder(engine: sa.Engine, journals: Path) -> Path:
    """Returns the folder of the locks of all processes that this one can see on a database.

    A SQLite file is on one machine, so the folder stands next to it. The processes of a server's
    database see those on their own data folder.
    """
    file = engine.url.database
    if engine.dialect.name != "sqlite" or file is None:
        return journals
    path = Path(file).absolute()
    return (
        journals
        if path.parent == journals.parent.absolute()
        else path.with_name(f"{path.name}-alive")
    )


def lives(folder: Path, process_id: str) -> bool:
    """Whether a process on this folder holds its lock: surely alive. False: nobody knows."""
    files = (folder / f"{process_id}{_SUFFIX}", *folder.glob(f"{process_id}-*{journal.SUFFIX}"))
    return any(_is_locked(file) for file in files)


def remove_dead(folder: Path) -> None:
    """Remove the files of processes that have died.

    What cannot be opened stays, as the lock of another user's process.
    """
    for file in folder.glob(f"*{_SUFFIX}"):
        # A folder of such a name is nobody's lock, and stays.
        if not file.is_dir() and _lock(file) == "free":
            file.unlink(missing_ok=True)


def presences(folder: Path) -> list[Presence]:
    """Returns what the running servers on this folder say."""
    return [_read(file) for file in sorted(folder.glob(f"*{_SUFFIX}")) if _is_locked(file)]


def _read(file: Path) -> Presence:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Presence)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return Presence()


def _is_locked(file: Path) -> bool:
    return _lock(file) == "held"


def _lock(file: Path) -> Literal["held", "free", "unseen"]:
    """Returns the state of a file's lock: "unseen" if the file cannot be opened."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return "unseen"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return "held"
    finally:
        os.close(descriptor)
    return "free"
