"""A value as a server-sent event: one line, for every reader of lines."""

from __future__ import annotations

import msgspec

_encode = msgspec.json.Encoder().encode
# In JSON all other ends of lines are escaped anyway. Readers like Python's splitlines split here.
_LINE_ENDS = (
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
    ("\x85".encode(), b"\\u0085"),
)


def frame(value: object) -> bytes:
    """Returns the event of a value (S1, S11)."""
    return frame_of(_encode(value))


def frame_of(encoded: bytes) -> bytes:
    """Returns the event of a value that is JSON already."""
    if not encoded.isascii():
        for end, escaped in _LINE_ENDS:
            encoded = encoded.replace(end, escaped)
    return b"data: %b\n\n" % encoded
