"""A file of admitted and ended requests, written before the last byte of an answer is sent.

A line goes to the page cache, which outlives the process; ``sync`` brings it to the disk. An
admission reserves space for the request's end, so a full disk refuses requests but loses none.
The ledger writer writes the lines to the database; the journal then drops them. The next process
reads the journal of a process that died (``other_journals``).
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from afterword.core.account import UsageRecord
from afterword.core.machine import reserve_space, sync_file
from afterword.ledger.folder import make_private
from afterword.ledger.journal_lines import line_of

SEGMENT_BYTES = 1 << 20
SUFFIX = ".journal"
_END_BYTES = 512
"""The most that an end takes beyond the length of its admission."""


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
        line = line_of("admitted", record)
        wanted_bytes = 2 * len(line) + _END_BYTES
        if self._segments[-1].room_bytes < wanted_bytes + self._promised_bytes:
            self._grow(wanted_bytes)
        self._write_admission(record.id, line)
        self._promised_bytes += self._open[record.id].promised_bytes
        self.unsettled += 1

    def settle(self, record: UsageRecord) -> None:
        """Record the end of a request. Raises ``OSError`` if the disk fails."""
        self._end("settled", record)

    def release(self, record: UsageRecord) -> None:
        """Take back an admission. Its lines are dropped even if it raises ``OSError``."""
        try:
            self._end("released", record)
        finally:
            # Nobody writes it to the database.
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
        newest.append(line_of(kind, record))
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
        if not self._folder.is_dir():
            # Somebody has removed it, and what was in it.
            make_private(self._folder)
        path = self._folder / f"{self._process_id}-{self._next:06d}{SUFFIX}"
        self._segments.append(Segment(path, size_bytes))
        self._next += 1
        for request_id, line in moving.items():
            line.home.open_lines -= 1
            self._write_admission(request_id, line.admission)
