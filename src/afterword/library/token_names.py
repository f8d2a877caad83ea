"""Names of tokens as people read them."""

from __future__ import annotations

_BYTES = "bytes:\\x"
_ESCAPE = "\\x"


def visible(name: str) -> str:
    """Returns a token's name with escapes for what cannot be seen.

    A name of bytes (L4) has its escapes already.
    """
    return name if name.startswith(_BYTES) else repr(name)[1:-1]


def bytes_of(name: str) -> bytes:
    """Returns the bytes that a token writes."""
    if not name.startswith(_BYTES):
        return name.encode()
    return bytes.fromhex(name.removeprefix("bytes:").replace(_ESCAPE, ""))
