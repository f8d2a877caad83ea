"""Names of tokens as people read them."""

from __future__ import annotations

_BYTES = "bytes:\\x"


def visible(name: str) -> str:
    """Returns a token's name with escapes for what cannot be seen.

    A name of bytes (L4) has its escapes already.
    """
    return name if name.startswith(_BYTES) else repr(name)[1:-1]
