"""Journals of other processes in a folder: which there are, and what is in them."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Container
from contextlib import suppress
from functools import cache
from pathlib import Path

import msgspec

from afterword.core.account import UsageRecord
from afterword.ledger.journal import SUFFIX
from afterword.ledger.journal_lines import Line, read_segment
from afterword.ledger.set_aside import AsideEntry
from afterword.ledger.soundness import clean

_log = logging.getLogger(__name__)


class JournalContents(msgspec.Struct, frozen=True):
    """The records of a journal, and what in it could not be read."""

    records: list[UsageRecord]
    unread: list[AsideEntry]


class OrphanedJournal:
    """The segments of a dead process; holds the locks on them."""

    def __init__(self, process_id: str) -> None:
        self.process_id = process_id
        self.files: list[tuple[Path, int]] = []

    def read(self) -> JournalContents:
        """Returns its requests' records; the status of those without an end is "lost".

        Raises ``OSError`` if a file cannot be read.
        """
        last: dict[str, Line] = {}
        unread: list[AsideEntry] = []
        for path, descriptor in self.files:
            lines, damaged = read_segment(_whole_file(descriptor), clean(path.name))
            unread += damaged
            for line in lines:
                last[line.record.id] = line
        records = [line.record for line in last.values() if line.kind != "released"]
        return JournalContents(records, unread)

    def remove(self) -> None:
        """Remove the files: all their records are in the database."""
        for path, descriptor in self.files:
            path.unlink(missing_ok=True)
            os.close(descriptor)
        self.files.clear()

    def close(self) -> None:
        """Leave the files to others."""
        for _, descriptor in self.files:
            os.close(descriptor)
        self.files.clear()


def orphaned_journals(folder: Path, *, of: str = "") -> list[OrphanedJournal]:
    """Returns the journals of dead processes, locked against other processes.

    ``of`` is how the process ids begin.
    """
    found: dict[str, OrphanedJournal] = {}
    held: set[str] = set()
    for path in _files(folder, of):
        process_id = _process_of(path)
        descriptor = _take(path)
        if descriptor is None:
            held.add(process_id)
            continue
        found.setdefault(process_id, OrphanedJournal(process_id)).files.append((path, descriptor))
    for process_id in sorted(held & found.keys()):
        found.pop(process_id).close()
    return list(found.values())


def any_journal(folder: Path, *, of: str = "") -> bool:
    """Whether a process whose id begins with ``of`` has a journal, dead or running."""
    return bool(_files(folder, of))


def strange(folder: Path) -> list[str]:
    """Returns the names of what is called a journal and is no file that can be opened."""
    return [
        clean(path.name)
        for path in _files(folder)
        if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK | os.W_OK)
    ]


def orphaned_bytes(folder: Path) -> int:
    """Returns the size of the journals of dead processes."""
    total = 0
    for orphan in orphaned_journals(folder):
        total += sum(os.fstat(descriptor).st_size for _, descriptor in orphan.files)
        orphan.close()
    return total


def settled_records(folder: Path, *, of: str = "", but: Container[str] = ()) -> list[UsageRecord]:
    """Returns the records of ended requests in journals, those of running processes too.

    ``of`` is how the process ids begin; ``but`` are ids to leave out.
    """
    records: dict[str, UsageRecord] = {}
    for path in _files(folder, of):
        if _process_of(path) in but or not path.is_file():
            continue
        with suppress(FileNotFoundError, PermissionError):
            # The process may be writing: it is not this one that says what is damaged.
            lines, _ = read_segment(path.read_bytes(), path.name)
            records |= {line.record.id: line.record for line in lines if line.kind == "settled"}
    return list(records.values())


def _files(folder: Path, of: str = "") -> list[Path]:
    """Returns what is called a journal. A folder that is closed to this user has none for it."""
    try:
        return sorted(folder.glob(f"{of}*{SUFFIX}"))
    except PermissionError:
        return []


def _whole_file(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    parts: list[bytes] = []
    at = 0
    while part := os.pread(descriptor, max(size - at, 1), at):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _process_of(path: Path) -> str:
    return clean(path.name.removesuffix(SUFFIX).rpartition("-")[0])


def _take(path: Path) -> int | None:
    """Returns a journal's descriptor with its lock, or None if it is in use or is no journal."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        _say(f"{clean(path.name)} cannot be opened and stays: {error.strerror}")
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            _say(f"{clean(path.name)} is no file and stays")
            os.close(descriptor)
            return None
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    # The process that held the lock may have removed the file.
    if not path.exists():
        os.close(descriptor)
        return None
    return descriptor


@cache
def _say(text: str) -> None:
    """Log a warning once: journals are looked at every few seconds."""
    _log.warning("%s", text)
