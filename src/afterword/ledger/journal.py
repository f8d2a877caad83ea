"""A file of admitted and ended requests, written before the last byte of an answer is sent.

A line goes to the page cache, which outlives the process; ``sync`` brings it to the disk. An
admission reserves space for the request's end, so a full disk refuses requests but loses none.
The ledger writer writes the lines to the database; the journal then drops them. The next process
reads the journal of a process that died.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
import zlib
from collections import deque
from collections.abc import Container, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from afterword.core.account import UsageRecord
from afterword.core.machine import reserve_space, sync_file
from afterword.ledger.folder import make_private
from afterword.ledger.set_aside import AsideEntry, of_line
from afterword.ledger.soundness import clean

_log = logging.getLogger(__name__)

SEGMENT_BYTES = 1 << 20
_SUFFIX = ".journal"
_LINE_START = re.compile(rb"[0-9a-f]{8} \{")
_END_BYTES = 512
"""The most that an end takes beyond the length of its admission."""


class Line(msgspec.Struct, frozen=True, tag_field="line", omit_defaults=True):
    """One line. The record of an admission has zero counts and the status "lost"."""

    kind: Literal["admitted", "settled", "released"]
    record: UsageRecord


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


class Segment:
    """One file. ``open_lines`` counts the lines that are not in the database yet."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.written_bytes = 0
        self.open_lines = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        unnamed = path.with_suffix(".new")
        self.descriptor = os.open(unnamed, flags, 0o600)
        try:
            # Whatever the umask is.
            os.fchmod(self.descriptor, 0o600)
            # A living process holds this lock: a process that can take it knows that the owner is
            # dead. So the file gets the name by which others find it after the lock is taken.
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            reserve_space(self.descriptor, size_bytes)
            unnamed.rename(path)
        except OSError:
            unnamed.unlink()
            os.close(self.descriptor)
            raise

    @property
    def room_bytes(self) -> int:
        """The space that is left."""
        return self.size_bytes - self.written_bytes

    def append(self, line: bytes) -> None:
        """Write a line that fits. A line that fails leaves no gap."""
        at = self.written_bytes
        while line:
            size = os.pwrite(self.descriptor, line, at)
            at, line = at + size, line[size:]
        self.written_bytes = at


class _Open(msgspec.Struct):
    """A line that is not in the database: its segment, and its text while the request runs."""

    home: Segment
    admission: bytes = b""

    @property
    def promised_bytes(self) -> int:
        """The space reserved for the request's end."""
        return len(self.admission) + _END_BYTES if self.admission else 0


class Journal:
    """The lines of this process. Its methods belong to one thread, ``sync`` to another.

    Invariant: the newest segment has room for the ends of all running requests. The segments take
    at most ``limit_bytes``; beyond that, admission stops until the database is back.
    """

    def __init__(self, folder: Path, process_id: str, *, limit_bytes: int) -> None:
        self._folder = folder
        self._process_id = process_id
        self._limit_bytes = limit_bytes
        self._next = 0
        self._segments: list[Segment] = []
        self._leaving: deque[int] = deque()
        self._open: dict[str, _Open] = {}
        self._promised_bytes = 0
        self.unsettled = 0
        """Admitted requests that have not ended."""

    @property
    def size_bytes(self) -> int:
        """The size of all segments."""
        return sum(segment.size_bytes for segment in self._segments)

    def __enter__(self) -> Self:
        """Make the folder and the first segment. Raises ``OSError``, as for a full disk."""
        make_private(self._folder)
        self._grow(0)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files. Segments with lines that are not in the database stay."""
        for segment in self._segments:
            if segment.open_lines:
                # No more lines come: free the space reserved for them.
                os.ftruncate(segment.descriptor, segment.written_bytes)
            else:
                segment.path.unlink(missing_ok=True)
            self._leaving.append(segment.descriptor)
        self._segments.clear()
        self.sync()

    def admit(self, record: UsageRecord) -> None:
        """Record that a request begins. Raises ``OSError`` if it and its end do not fit."""
        line = _line("admitted", record)
        wanted_bytes = 2 * len(line) + _END_BYTES
        if self._segments[-1].room_bytes < wanted_bytes + self._promised_bytes:
            self._grow(wanted_bytes)
        self._write_admission(record.id, line)
        self._promised_bytes += self._open[record.id].promised_bytes
        self.unsettled += 1

    def settle(self, record: UsageRecord) -> None:
        """Record the end of a request."""
        self._end("settled", record)

    def release(self, record: UsageRecord) -> None:
        """Take back an admission."""
        self._end("released", record)
        self.written([record.id])

    def written(self, ids: Sequence[str]) -> None:
        """Drop the lines of requests that are in the database, and segments without others."""
        for request_id in ids:
            written = self._open.pop(request_id, None)
            if written is not None:
                written.home.open_lines -= 1
        # Oldest first, so that no admission is left without its end.
        while len(self._segments) > 1 and not self._segments[0].open_lines:
            oldest = self._segments.pop(0)
            oldest.path.unlink(missing_ok=True)
            self._leaving.append(oldest.descriptor)

    def sync(self) -> None:
        """Bring the lines to the disk; close removed segments."""
        for segment in list(self._segments):
            sync_file(segment.descriptor)
        while self._leaving:
            os.close(self._leaving.popleft())

    def _write_admission(self, request_id: str, line: bytes) -> None:
        newest = self._segments[-1]
        newest.append(line)
        newest.open_lines += 1
        self._open[request_id] = _Open(newest, line)

    def _end(self, kind: Literal["settled", "released"], record: UsageRecord) -> None:
        admitted = self._open[record.id]
        self._promised_bytes -= admitted.promised_bytes
        self.unsettled -= 1
        # If the disk fails now, the admission stays until the request is in the database.
        self._open[record.id] = _Open(admitted.home)
        newest = self._segments[-1]
        newest.append(_line(kind, record))
        admitted.home.open_lines -= 1
        newest.open_lines += 1
        self._open[record.id] = _Open(newest)

    def _grow(self, wanted_bytes: int) -> None:
        """Add a segment. Running requests move to it, so that older segments can be removed."""
        moving = {key: line for key, line in self._open.items() if line.admission}
        needed_bytes = wanted_bytes + 2 * self._promised_bytes
        size_bytes = max(SEGMENT_BYTES, 2 * needed_bytes)
        if self.size_bytes + size_bytes > self._limit_bytes:
            raise OSError(f"the journal is full: {self.size_bytes} bytes wait for the database")
        path = self._folder / f"{self._process_id}-{self._next:06d}{_SUFFIX}"
        self._segments.append(Segment(path, size_bytes))
        self._next += 1
        for request_id, line in moving.items():
            line.home.open_lines -= 1
            self._write_admission(request_id, line.admission)


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
    for path in sorted(folder.glob(f"{of}*{_SUFFIX}")):
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
    return any(folder.glob(f"{of}*{_SUFFIX}"))


def strange(folder: Path) -> list[str]:
    """Returns the names of what is called a journal and is no file that can be opened."""
    return [
        clean(path.name)
        for path in sorted(folder.glob(f"*{_SUFFIX}"))
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
    for path in sorted(folder.glob(f"{of}*{_SUFFIX}")):
        if _process_of(path) in but or not path.is_file():
            continue
        with suppress(FileNotFoundError, PermissionError):
            # The process may be writing: it is not this one that says what is damaged.
            lines, _ = read_segment(path.read_bytes(), path.name)
            records |= {line.record.id: line.record for line in lines if line.kind == "settled"}
    return list(records.values())


def read_segment(data: bytes, name: str) -> tuple[list[Line], list[AsideEntry]]:
    """Returns the lines of a segment, and an entry for each that is damaged or unknown.

    Damage costs the line that it is in, and no other.
    """
    lines: list[Line] = []
    unread: list[AsideEntry] = []
    at = 0
    for number, raw in enumerate(data.split(b"\n"), 1):
        text = raw.rstrip(b"\0")
        if text.strip(b"\0"):
            try:
                lines.append(_read(text))
            except _UnreadableLine as error:
                found, rest = _salvaged(text)
                lines += found
                # Between two lines that are whole only the end of the first is damaged.
                if len(rest) > len(found):
                    place = f"{name}, line {number} at byte {at}"
                    unread.append(of_line(place, str(error), rest))
        at += len(raw) + 1
    return lines, unread


class _UnreadableLine(Exception):
    """A line that is damaged, or of a kind that this program does not know."""


def _read(raw: bytes) -> Line:
    """Returns a line. The oldest ones have no checksum. Raises ``_UnreadableLine``."""
    if raw.startswith(b"{"):
        return _decoded(raw)
    check, _, body = raw.partition(b" ")
    if not body or check != _check(body):
        raise _UnreadableLine(
            "a line of a journal is damaged: its checksum is not that of its text"
        )
    return _decoded(body)


def _decoded(body: bytes) -> Line:
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        raise _UnreadableLine(f"a line of a journal is of an unknown kind: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _UnreadableLine("a line of a journal is not JSON") from error


def _salvaged(raw: bytes) -> tuple[list[Line], bytes]:
    """Returns the whole lines in what is not one line, and the rest.

    They stand in one line if the end of a line or a page of the file is damaged.
    """
    starts = [found.start() for found in _LINE_START.finditer(raw)]
    lines: list[Line] = []
    rest = [raw[: starts[0]] if starts else raw]
    for start, end in zip(starts, [*starts[1:], len(raw)], strict=False):
        for until in (end, end - 1):
            with suppress(_UnreadableLine):
                lines.append(_read(raw[start:until].rstrip(b"\0")))
                rest.append(raw[until:end])
                break
        else:
            rest.append(raw[start:end])
    return lines, b"".join(rest)


def _whole_file(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    parts: list[bytes] = []
    at = 0
    while part := os.pread(descriptor, max(size - at, 1), at):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _process_of(path: Path) -> str:
    return clean(path.name.removesuffix(_SUFFIX).rpartition("-")[0])


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


def _line(kind: Literal["admitted", "settled", "released"], record: UsageRecord) -> bytes:
    body = _encode(Line(kind, record))
    return b"%b %b\n" % (_check(body), body)


def _check(body: bytes) -> bytes:
    return b"%08x" % zlib.crc32(body)
