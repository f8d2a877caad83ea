"""The keys' secrets: how they are made, hashed, and shown without being given away."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

SECRET_PREFIX = "sk-af-"  # noqa: S105 - what every key begins with
_SECRET_BYTES = 32
_SHOWN_CHARACTERS = len(SECRET_PREFIX) + 4
_LEAST_MASKED_CHARACTERS = 16


def make_secret(entropy: Callable[[int], bytes]) -> str:
    """A new key: 256 random bits."""
    random = base64.urlsafe_b64encode(entropy(_SECRET_BYTES)).decode().rstrip("=")
    return SECRET_PREFIX + random


def digest_of(secret: str) -> bytes:
    """What is kept of a key. 256 random bits need no slow hash: nothing guesses them."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def prefix_of(secret: str) -> str:
    """The part that tells keys apart in lists."""
    return secret[:_SHOWN_CHARACTERS]


def masked(secret: str) -> str:
    """A key as an error may show it (H3): its first five characters and its last two."""
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in secret)
    if len(shown) < _LEAST_MASKED_CHARACTERS:
        return "***"
    return f"{shown[:5]}***{shown[-2:]}"
