"""Who hears of the progress of a fetch: by default nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from afterword.models.package import Progress

__all__ = ["Progress", "Quiet"]


class Quiet:
    """Receives progress and keeps it to itself."""

    def say(self, text: str) -> None:
        """Drop a line."""

    @contextmanager
    def progress(self, label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:  # noqa: ARG002 - the protocol
        """Yields a function that drops its bytes."""

        def advance(size: int) -> None:
            del size

        yield advance
