"""How long to go on asking a server that is at a limit and says when to come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from afterword.core.errors import ApiError

_LEAST_REST_S = 1.0
"""Of a server that says 0, so that it is not asked without a pause."""


class Patience:
    """Waits as long as ``Retry-After`` says, until no request was answered for ``most_s``.

    ``told`` is called with each error that is waited out. It is shared by all requests to one
    server: while some of them are answered, the others may wait for their turn.
    """

    def __init__(
        self,
        most_s: float = 0.0,
        *,
        told: Callable[[ApiError], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._most_s = most_s
        self._told = told
        self._clock = clock
        self._sleep = sleep
        self._answered_at = clock()

    def answered(self) -> None:
        """Note that a request was answered."""
        self._answered_at = self._clock()

    async def outlasts(self, error: ApiError) -> bool:
        """Wait as long as an error says. Returns False at once if that is never, or too long."""
        if error.retry_after_s is None:
            return False
        rest_s = max(float(error.retry_after_s), _LEAST_REST_S)
        if self._clock() + rest_s - self._answered_at > self._most_s:
            return False
        self._told(error)
        await self._sleep(rest_s)
        return True
