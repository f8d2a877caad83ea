"""Lines of journals: a record and what became of its request, with a checksum."""

from __future__ import annotations

import re
import zlib
from contextlib import suppress
from typing import Literal

import msgspec

from afterword.core.account import UsageRecord
from afterword.ledger.set_aside import AsideEntry, of_line

_START = re.compile(rb"[0-9a-f]{8} \{")


class Line(msgspec.Struct, frozen=True, tag_field="line", omit_defaults=True):
    """One line. The record of an admission has zero counts and the status "lost"."""

    kind: Literal["admitted", "settled", "released"]
    record: UsageRecord


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


def line_of(kind: Literal["admitted", "settled", "released"], record: UsageRecord) -> bytes:
    """Returns the bytes of a line, with its end."""
    body = _encode(Line(kind, record))
    return b"%b %b\n" % (checksum(body), body)


def checksum(body: bytes) -> bytes:
    """Returns the checksum that stands before the JSON of a line."""
    return b"%08x" % zlib.crc32(body)


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
    if not body or check != checksum(body):
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
    starts = [found.start() for found in _START.finditer(raw)]
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
