"""The line of requests that wait for slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from afterword.engine.batching.sequence import Request


class FairLine:
    """Requests with waiting sequences. Each gets one slot in turn, the oldest request first.

    Invariant: a request is in the line at most once.
    """

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()

    def __contains__(self, request: Request) -> bool:
        return request in self._requests

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def join(self, request: Request) -> None:
        """Put a request at the end."""
        self._requests.append(request)

    def rejoin(self, request: Request) -> None:
        """Put a request that had left at the front."""
        if request not in self._requests:
            self._requests.appendleft(request)

    def leave(self, request: Request) -> None:
        """Take a request out. Idempotent."""
        if request in self._requests:
            self._requests.remove(request)

    def serve(self, has_room: Callable[[], bool], place: Callable[[Request], bool]) -> None:
        """Serve requests in turn until there is no room or a whole round placed nothing.

        ``place`` starts one sequence of a request, or returns False.
        """
        blocked = 0
        while blocked < len(self._requests) and has_room():
            request = self._requests[0]
            self._requests.rotate(-1)
            blocked = 0 if place(request) else blocked + 1
            if not request.waiting and request in self._requests:
                self._requests.remove(request)
                blocked = 0

    @property
    def waiting(self) -> int:
        """Number of sequences without a slot."""
        return sum(request.waiting for request in self._requests)

    @property
    def waiting_since_s(self) -> float | None:
        """When the oldest request that has not started arrived, in seconds; None if none waits."""
        return min((r.added_s for r in self._requests if not r.started), default=None)
