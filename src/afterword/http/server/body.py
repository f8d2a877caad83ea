"""The body of a request: where it ends, and what of a chunked one is content. No I/O."""

from __future__ import annotations

import re

from afterword.core.errors import HeadersTooLarge, UnreadableRequest

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_MOST_SIZE_BYTES = 15
_PIECE_BYTES = 16_384


class FixedBody:
    """A body whose length is known."""

    def __init__(self, length_bytes: int) -> None:
        self._missing_bytes = length_bytes
        self.complete = length_bytes == 0

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Returns the parts of the body in the data, and what is not looked at yet."""
        part, rest = data[: self._missing_bytes], data[self._missing_bytes :]
        self._missing_bytes -= len(part)
        self.complete = self._missing_bytes == 0
        return [part], rest


class ChunkedBody:
    """A body in chunks. What is no content may take ``allowance_bytes``: extensions and trailers.

    Trailers are not kept.
    """

    def __init__(self, allowance_bytes: int) -> None:
        self._allowance_bytes = allowance_bytes
        self._line = b""
        self._missing_bytes = 0
        self._expected = "size"
        self.complete = False

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Returns the parts of the body in the data, and what is not looked at yet.

        Looks at 16 KiB at most, because millions of tiny chunks would hold everybody up. Raises
        ``UnreadableRequest`` or ``HeadersTooLarge``.
        """
        parts: list[bytes] = []
        at, end = 0, min(len(data), _PIECE_BYTES)
        while at < end and not self.complete:
            if self._missing_bytes:
                part = data[at : at + self._missing_bytes]
                self._missing_bytes -= len(part)
                at += len(part)
                parts.append(part)
                continue
            newline = data.find(b"\n", at, end)
            stop = end if newline < 0 else newline + 1
            self._line += data[at:stop]
            at = stop
            if newline < 0:
                self._check_line()
            else:
                self._take_line()
        return parts, data[at:]

    def _check_line(self) -> None:
        """Refuse a line that is too long already, before its end."""
        if self._expected == "end" and not b"\r\n".startswith(self._line):
            raise _broken()
        if len(self._line) > self._allowance_bytes + _MOST_SIZE_BYTES + 2:
            raise _too_much()

    def _take_line(self) -> None:
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n"):
            raise _broken()
        line = line[:-2]
        if self._expected == "size":
            self._take_size(line)
        elif self._expected == "end":
            if line:
                raise _broken()
            self._expected = "size"
        elif line:
            self._spend(len(line) + 2)
            if not _TRAILER.fullmatch(line):
                raise _broken()
        else:
            self.complete = True

    def _take_size(self, line: bytes) -> None:
        found = _SIZE.fullmatch(line)
        self._spend(len(line) - (len(found[1]) if found else 0))
        if not found:
            raise _broken()
        self._missing_bytes = int(found[1], 16)
        self._expected = "end" if self._missing_bytes else "trailers"

    def _spend(self, size_bytes: int) -> None:
        self._allowance_bytes -= size_bytes
        if self._allowance_bytes < 0:
            raise _too_much()


def _broken() -> UnreadableRequest:
    return UnreadableRequest("The request could not be read as HTTP/1.1: its chunks are broken.")


def _too_much() -> HeadersTooLarge:
    return HeadersTooLarge("The headers, trailers and extensions of chunks are too large.")
