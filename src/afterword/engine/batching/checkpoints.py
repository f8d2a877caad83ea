"""Decides which checkpoints are kept within a budget of memory; the runner holds their bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from afterword.engine.batching.slots import Checkpoint


class Checkpoints:
    """Checkpoints by number; the least recently used are evicted first.

    Invariant: together they take at most the budget, once ``evict`` has returned None.
    """

    def __init__(self, *, first: int, size_bytes: Callable[[int], int], budget_bytes: int) -> None:
        self._next = first
        self._size_bytes = size_bytes
        self._budget_bytes = budget_bytes
        self._kept: dict[int, Checkpoint] = {}
        self.held_bytes = 0

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self._kept.values())

    def add(self, tokens: int) -> Checkpoint | None:
        """Returns a new checkpoint of ``tokens`` tokens; None if it alone exceeds the budget."""
        size_bytes = self._size_bytes(tokens)
        if size_bytes > self._budget_bytes:
            return None
        checkpoint = Checkpoint(self._next, tokens, size_bytes)
        self._next += 1
        self._kept[checkpoint.index] = checkpoint
        self.held_bytes += size_bytes
        return checkpoint

    def evict(self, *, but: Checkpoint) -> Checkpoint | None:
        """Remove and return the next one to go, never ``but``; None if all fit the budget."""
        if self.held_bytes <= self._budget_bytes:
            return None
        others = (kept for kept in self._kept.values() if kept is not but)
        return self.pop(min(others, key=lambda kept: kept.last_used).index)

    def pop(self, number: int) -> Checkpoint | None:
        """Remove and return a checkpoint; None if there is none of this number."""
        checkpoint = self._kept.pop(number, None)
        if checkpoint is not None:
            self.held_bytes -= checkpoint.size_bytes
        return checkpoint

    def check(self) -> None:
        """Raise ``AssertionError`` if an invariant does not hold."""
        size_bytes = sum(kept.size_bytes for kept in self._kept.values())
        if size_bytes != self.held_bytes or size_bytes > self._budget_bytes:
            raise AssertionError(
                f"checkpoints take {size_bytes} bytes, {self.held_bytes} are counted"
            )
