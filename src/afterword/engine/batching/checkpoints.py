"""Which copies of whole states are kept, within a budget of memory; what they hold is elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from afterword.engine.batching.slots import Checkpoint


class Checkpoints:
    """Copies by number; the least recently used go first.

    Invariant: together they take at most the budget, once ``evict`` has nothing more to give.
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
        """A new one of so many tokens; None where it alone would be too large."""
        size_bytes = self._size_bytes(tokens)
        if size_bytes > self._budget_bytes:
            return None
        checkpoint = Checkpoint(self._next, tokens, size_bytes)
        self._next += 1
        self._kept[checkpoint.index] = checkpoint
        self.held_bytes += size_bytes
        return checkpoint

    def evict(self, *, but: Checkpoint) -> Checkpoint | None:
        """Take out the one that has to go next; None where all have room."""
        if self.held_bytes <= self._budget_bytes:
            return None
        others = (kept for kept in self._kept.values() if kept is not but)
        return self.pop(min(others, key=lambda kept: kept.last_used).index)

    def pop(self, number: int) -> Checkpoint | None:
        """Take one out; None where it is not there."""
        checkpoint = self._kept.pop(number, None)
        if checkpoint is not None:
            self.held_bytes -= checkpoint.size_bytes
        return checkpoint

    def check(self) -> None:
        """Raise ``AssertionError`` if an invariant does not hold."""
        size_bytes = sum(kept.size_bytes for kept in self._kept.values())
        if size_bytes != self.held_bytes or size_bytes > self._budget_bytes:
            raise AssertionError(f"{self.held_bytes} bytes of states are said, {size_bytes} kept")
