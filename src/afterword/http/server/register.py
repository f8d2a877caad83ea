"""The connections that are open and the requests that run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Protocol

_END_S = 5.0
"""The wait for what was cancelled, which records what it used."""


class Registered(Protocol):
    """An open connection, as a stopping server sees it."""

    def is_idle(self) -> bool:
        """Returns whether no answer is in progress."""

    def finish(self) -> None:
        """Close the connection, or let it end with its answer."""

    def abort(self) -> None:
        """Close the connection at once."""


class Register:
    """All connections of a server. ``closing``: each ends with its next answer."""

    def __init__(self) -> None:
        self.closing = False
        self.connections: set[Registered] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()

    def opened(self, connection: Registered) -> None:
        """A connection can send requests."""
        self.connections.add(connection)

    def lost(self, connection: Registered) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self._news.set()

    def changed(self) -> None:
        """An answer has ended."""
        self._news.set()

    def run(self, request: Coroutine[None, None, None]) -> None:
        """Run a request."""
        task = asyncio.get_running_loop().create_task(request)
        self._running.add(task)
        task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._news.set()

    def some_idle(self) -> bool:
        """Returns whether a connection is open without an answer in progress."""
        return any(connection.is_idle() for connection in self.connections)

    def is_empty(self) -> bool:
        """Returns whether no connection is open and no request runs."""
        return not self.connections and not self._running

    async def wait_until(self, met: Callable[[], bool]) -> None:
        """Wait until a condition on the register is met."""
        while not met():
            self._news.clear()
            await self._news.wait()

    def finish(self) -> None:
        """Close idle connections, and let the others end with their answers."""
        self.closing = True
        for connection in list(self.connections):
            connection.finish()

    async def cut(self) -> None:
        """Cancel what runs, and close what is open."""
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=_END_S)
        for connection in list(self.connections):
            connection.abort()
