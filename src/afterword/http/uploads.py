"""Bounds the memory of large requests, from the first bytes of their bodies to their ends.

One limit on a body is not enough: a client may send a thousand of them at once, and slowly. What is
made of a body takes several times its bytes, so it counts until the request is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from afterword.core.errors import EngineOverloaded

MOST_OF_ALL = 32
MOST_OF_ONE = 8
"""Bodies of the largest size."""
_FREE_BYTES = 65_536
"""Of each body: ordinary requests are never refused because of large ones."""
_RETRY_AFTER_S = 1


class Upload:
    """One body: takes memory as it arrives, until the end of its request."""

    def __init__(self, uploads: Uploads, owner: str) -> None:
        self._uploads = uploads
        self._owner = owner
        self._taken_bytes = 0

    def grow(self, size_bytes: int, limit_bytes: int) -> None:
        """Note that so much of the body is there. ``limit_bytes`` is the most of any body.

        Raises ``EngineOverloaded`` if too much is there of bodies of this owner, or of all.
        """
        more_bytes = max(size_bytes - _FREE_BYTES, 0) - self._taken_bytes
        if more_bytes > 0:
            self._uploads.take(self._owner, more_bytes, limit_bytes)
            self._taken_bytes += more_bytes

    def end(self) -> None:
        """The request is over. Idempotent."""
        self._uploads.give_back(self._owner, self._taken_bytes)
        self._taken_bytes = 0


class Uploads:
    """The bodies of all requests under way.

    Invariant: they take at most ``MOST_OF_ALL`` times the largest body, those of one owner
    ``MOST_OF_ONE`` times, and 64 KiB each.
    """

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()

    @contextmanager
    def by(self, owner: str) -> Iterator[Upload]:
        """One more body of an owner, until the end of the block."""
        upload = Upload(self, owner)
        try:
            yield upload
        finally:
            upload.end()

    def take(self, owner: str, size_bytes: int, limit_bytes: int) -> None:
        """Called by uploads."""
        own_bytes = self._bytes[owner] + size_bytes
        all_bytes = self._bytes.total() + size_bytes
        if own_bytes > MOST_OF_ONE * limit_bytes or all_bytes > MOST_OF_ALL * limit_bytes:
            raise EngineOverloaded(
                "Too many large requests are under way, please try again later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._bytes[owner] = own_bytes

    def give_back(self, owner: str, size_bytes: int) -> None:
        """Called by uploads."""
        self._bytes[owner] -= size_bytes
        if not self._bytes[owner]:
            del self._bytes[owner]
