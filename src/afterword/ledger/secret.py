"""The secrets of keys: making, hashing and masking them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

SECRET_PREFIX = "sk-af-"  # noqa: S105 - what every key begins with
_SECRET_BYTES = 32
_SHOWN_CHARACTERS = len(SECRET_PREFIX) + 4
_LEAST_MASKED_CHARACTERS = 16


def make_secret(entropy: Callable[[int], bytes]) -> str:
    """Returns a new secret of 256 random bits."""
    random = base64.urlsafe_b64encode(entropy(_SECRET_BYTES)).decode().rstrip("=")
    return SECRET_PREFIX + random


def digest_of(secret: str) -> bytes:
    """Returns the hash that the database keeps. 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def prefix_of(secret: str) -> str:
    """Returns the part that lists show."""
    return secret[:_SHOWN_CHARACTERS]


def masked(secret: str) -> str:
    """Returns a secret as an error shows it (H3): its first five characters and its last two."""
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in secret)
    if len(shown) < _LEAST_MASKED_CHARACTERS:
        return "***"
    return f"{shown[:5]}***{shown[-2:]}"
