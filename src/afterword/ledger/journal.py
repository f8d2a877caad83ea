"""What was admitted and what it came to, in a file, before the last byte of an answer is sent.

A line is written to the page cache, which outlives the process; ``sync`` brings it to the disk.
Space for a request's end is taken when it is admitted: a disk that fills up refuses requests, it
does not lose one. The writer writes the lines into the database and lets go of them; what is left
behind by a process that died is read by the next.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from afterword.core.account import UsageRecord

SEGMENT_BYTES = 1 << 20
_SUFFIX = ".journal"
_END_BYTES = 512
"""What an end may take beyond the length of its admission."""


class Line(msgspec.Struct, frozen=True, tag_field="line", omit_defaults=True):
    """One line. ``record`` is of an admission where its counts are zero and its status is lost."""

    kind: Literal["admitted", "settled", "released"]
    record: UsageRecord


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


class Segment:
    """One file. ``open_lines`` counts those that are not in the database yet."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.written_bytes = 0
        self.open_lines = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        unnamed = path.with_suffix(".new")
        self.descriptor = os.open(unnamed, flags, 0o600)
        try:
            # Held while the process lives: whoever can take it knows that the process does not.
            # So the file has its name, by which others look for it, when the lock is there.
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self.descriptor, 0, size_bytes)
            unnamed.rename(path)
        except OSError:
            unnamed.unlink()
            os.close(self.descriptor)
            raise

    @property
    def room_bytes(self) -> int:
        """What can still be written."""
        return self.size_bytes - self.written_bytes

    def append(self, line: bytes) -> None:
        """Write a line for which there is room; one that fails leaves no gap."""
        at = self.written_bytes
        while line:
            size = os.pwrite(self.descriptor, line, at)
            at, line = at + size, line[size:]
        self.written_bytes = at


class _Open(msgspec.Struct):
    """A line that is not in the database: where it is, and of a request under way its text."""

    home: Segment
    admission: bytes = b""

    @property
    def promised_bytes(self) -> int:
        """Room that is kept for the request's end."""
        return len(self.admission) + _END_BYTES if self.admission else 0


class Journal:
    """The lines of this process. Its methods belong to one thread, ``sync`` to another.

    Invariant: the newest segment has room for the ends of all requests under way. At most
    ``limit_bytes`` are kept: a database that is away for longer stops admission.
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
        """Requests that were admitted and have not ended."""

    @property
    def size_bytes(self) -> int:
        """What the segments take."""
        return sum(segment.size_bytes for segment in self._segments)

    def __enter__(self) -> Self:
        """Make the folder and the first segment: a disk that is full is noticed at once."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._grow(0)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of the files; those with lines that are not in the database stay."""
        for segment in self._segments:
            if segment.open_lines:
                # What was reserved for later lines is of no use to anybody.
                os.ftruncate(segment.descriptor, segment.written_bytes)
            else:
                segment.path.unlink(missing_ok=True)
            self._leaving.append(segment.descriptor)
        self._segments.clear()
        self.sync()

    def admit(self, record: UsageRecord) -> None:
        """A request begins. Raises ``OSError`` where there is no room for it and its end."""
        line = _line("admitted", record)
        wanted_bytes = 2 * len(line) + _END_BYTES
        if self._segments[-1].room_bytes < wanted_bytes + self._promised_bytes:
            self._grow(wanted_bytes)
        self._write_admission(record.id, line)
        self._promised_bytes += self._open[record.id].promised_bytes
        self.unsettled += 1

    def settle(self, record: UsageRecord) -> None:
        """A request has ended, and is to be written."""
        self._end("settled", record)

    def release(self, record: UsageRecord) -> None:
        """A request was not admitted after all."""
        self._end("released", record)
        self.written([record.id])

    def written(self, ids: Sequence[str]) -> None:
        """These are in the database; segments without others are removed, oldest first."""
        for request_id in ids:
            self._open.pop(request_id).home.open_lines -= 1
        # In order, so that no admission is left whose end is gone.
        while len(self._segments) > 1 and not self._segments[0].open_lines:
            oldest = self._segments.pop(0)
            oldest.path.unlink(missing_ok=True)
            self._leaving.append(oldest.descriptor)

    def sync(self) -> None:
        """Bring what was written to the disk; close what was removed."""
        for segment in list(self._segments):
            os.fdatasync(segment.descriptor)
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
        # Should the disk fail now, the admission stays until the request is in the database.
        self._open[record.id] = _Open(admitted.home)
        newest = self._segments[-1]
        newest.append(_line(kind, record))
        admitted.home.open_lines -= 1
        newest.open_lines += 1
        self._open[record.id] = _Open(newest)

    def _grow(self, wanted_bytes: int) -> None:
        """A new segment. What is under way moves to it, so that older ones wait for nobody."""
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


class OrphanedJournal:
    """The segments of one process that is dead; the locks on them are held."""

    def __init__(self, process_id: str) -> None:
        self.process_id = process_id
        self.files: list[tuple[Path, int]] = []

    def records(self) -> list[UsageRecord]:
        """How its requests ended; those that did not are ``lost``."""
        last: dict[str, Line] = {}
        for path, _ in self.files:
            for line in read_lines(path):
                last[line.record.id] = line
        return [line.record for line in last.values() if line.kind != "released"]

    def remove(self) -> None:
        """Everything in them is in the database."""
        for path, descriptor in self.files:
            path.unlink(missing_ok=True)
            os.close(descriptor)
        self.files.clear()

    def close(self) -> None:
        """Leave them for another time."""
        for _, descriptor in self.files:
            os.close(descriptor)
        self.files.clear()


def orphaned_journals(folder: Path, *, of: str = "") -> list[OrphanedJournal]:
    """What processes that died have left, locked so that no other process takes it too."""
    found: dict[str, OrphanedJournal] = {}
    held: set[str] = set()
    for path in sorted(folder.glob(f"{of}*{_SUFFIX}")):
        process_id = path.name.removesuffix(_SUFFIX).rpartition("-")[0]
        descriptor = _take(path)
        if descriptor is None:
            held.add(process_id)
            continue
        found.setdefault(process_id, OrphanedJournal(process_id)).files.append((path, descriptor))
    for process_id in sorted(held & found.keys()):
        found.pop(process_id).close()
    return list(found.values())


def any_journal(folder: Path, *, of: str = "") -> bool:
    """Whether processes whose ids begin so have a journal."""
    return any(folder.glob(f"{of}*{_SUFFIX}"))


def orphaned_bytes(folder: Path) -> int:
    """What the journals of dead processes take."""
    total = 0
    for orphan in orphaned_journals(folder):
        total += sum(os.fstat(descriptor).st_size for _, descriptor in orphan.files)
        orphan.close()
    return total


def settled_records(folder: Path, *, of: str = "") -> list[UsageRecord]:
    """The records of requests that have ended, of running processes too."""
    records: dict[str, UsageRecord] = {}
    for path in sorted(folder.glob(f"{of}*{_SUFFIX}")):
        with suppress(FileNotFoundError, PermissionError):
            records |= {
                line.record.id: line.record for line in read_lines(path) if line.kind == "settled"
            }
    return list(records.values())


def read_lines(path: Path) -> Iterator[Line]:
    """The whole lines of a segment; ends where the process was when it died."""
    for raw in path.read_bytes().split(b"\n"):
        check, _, body = raw.partition(b" ")
        if not body or check != _check(body):
            return
        yield _decode(body)


def _take(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    # It may have been removed by whoever held the lock until now.
    if not path.exists():
        os.close(descriptor)
        return None
    return descriptor


def _line(kind: Literal["admitted", "settled", "released"], record: UsageRecord) -> bytes:
    body = _encode(Line(kind, record))
    return b"%b %b\n" % (_check(body), body)


def _check(body: bytes) -> bytes:
    return b"%08x" % zlib.crc32(body)
