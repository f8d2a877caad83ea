"""A fair lock, with which models share one thread pool, one step at a time."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class FairLock:
    """A lock that threads acquire in the order in which they asked.

    Two models that compute at once would share the cores, and their threads would wait for
    threads that do not run. With a plain lock, one model could take the lock again and again.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def acquire_if_free(self) -> bool:
        """Acquire the lock unless a thread has it. Returns whether it did; then ``release`` it."""
        with self._guard:
            taken, self._taken = self._taken, True
            return not taken

    def release(self) -> None:
        """Let the next thread have the lock."""
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
