"""A file of what the ledger could not read or keep, with the reasons. Nobody but people removes it.

Lines of journals that are damaged, and records that the database refuses, would otherwise keep
everything behind them waiting.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from afterword.core.account import UsageRecord
from afterword.ledger.folder import make_private_file

FILE_NAME = "set-aside.jsonl"
_encode = msgspec.json.Encoder().encode


class AsideEntry(msgspec.Struct, frozen=True):
    """One line of the file: where it comes from, why it is here, and its own text."""

    source: str
    reason: str
    text: str


class SetAside:
    """The file in a folder of journals, shared by all processes on that folder."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE_NAME

    def add(self, entries: Sequence[AsideEntry]) -> None:
        """Append entries and bring them to the disk; one that is there already is not repeated.

        Raises ``OSError``.
        """
        if not entries:
            return
        data = self._read()
        known = set(_entries(data))
        new = [entry for entry in dict.fromkeys(entries) if entry not in known]
        if not new:
            return
        make_private_file(self.file)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.file, flags)
        try:
            # A full disk may have cut off the last line.
            end = b"\n" if data and not data.endswith(b"\n") else b""
            lines = memoryview(end + b"".join(_encode(entry) + b"\n" for entry in new))
            while lines:
                lines = lines[os.write(descriptor, lines) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def entries(self) -> list[AsideEntry]:
        """Returns what is set aside. A damaged line of this file counts, too.

        Raises ``OSError``.
        """
        return _entries(self._read())

    def _read(self) -> bytes:
        """Returns the file. Raises ``OSError`` for what is none: reading a pipe would wait."""
        try:
            descriptor = os.open(
                self.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            )
        except FileNotFoundError:
            return b""
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is no file")
            return file.read()


def of_record(record: UsageRecord, reason: str) -> AsideEntry:
    """Returns the entry of a record that cannot be kept."""
    # The standard library writes what msgspec refuses: halves of characters, endless numbers.
    return AsideEntry(record.id, reason, json.dumps(msgspec.structs.asdict(record)))


def of_line(source: str, reason: str, raw: bytes) -> AsideEntry:
    """Returns the entry of a line that cannot be read."""
    return AsideEntry(source, reason, raw.decode("utf-8", "backslashreplace"))


def sentences(entries: Iterable[AsideEntry], file: Path) -> list[str]:
    """Returns a sentence for each reason, for ``db check``."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        reasons.setdefault(entry.reason, []).append(entry.source)
    return [
        f"{len(sources)} set aside in {file}, the first from {sources[0]}: {reason}"
        for reason, sources in reasons.items()
    ]


def _entries(data: bytes) -> list[AsideEntry]:
    return [_entry(line) for line in data.split(b"\n") if line]


def _entry(line: bytes) -> AsideEntry:
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode(line, type=AsideEntry)
    return AsideEntry(
        FILE_NAME, "this line cannot be read", line.decode("utf-8", "backslashreplace")
    )
