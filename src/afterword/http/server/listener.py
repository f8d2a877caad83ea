"""Takes connections from a listening socket, as many as are allowed."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial

from starlette.types import ASGIApp

from afterword.core.machine import death_options
from afterword.http.server.connection import ClientConnection, Timeouts
from afterword.http.server.register import Register

_log = logging.getLogger(__name__)

_BACKLOG = 2048
_AT_ONCE = 64
"""Connections taken before others get the event loop."""
_PAUSE_S = 0.2
_GREETING_S = 1.0
"""The wait for handshakes when the server stops."""
_GOODBYE_S = 5.0
"""The wait for a client's end of TLS."""


class Listener:
    """Accepts connections and counts them, from the first packet to the last.

    A connection counts before its TLS handshake, too, which has to end within the time for a
    request. Connections above ``most`` are closed.
    """

    def __init__(
        self,
        app: ASGIApp,
        register: Register,
        timeouts: Timeouts,
        *,
        most: int,
        tls: Callable[[], ssl.SSLContext | None],
    ) -> None:
        self._app = app
        self._register = register
        self._timeouts = timeouts
        self._most = most
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._open: set[socket.socket] = set()
        self._greeting: set[asyncio.Task[None]] = set()
        self._full = False

    def listen(self, bound: socket.socket) -> None:
        """Take connections of a bound socket."""
        bound.settimeout(0)
        if bound.family in {socket.AF_INET, socket.AF_INET6}:
            for option in death_options(self._timeouts.write_s):
                bound.setsockopt(*option)
        bound.listen(_BACKLOG)
        self._sockets.append(bound)
        self._loop.add_reader(bound.fileno(), self._accept, bound, _AT_ONCE)

    async def close(self) -> None:
        """Take the connections that wait in the kernel's queue, then close the sockets."""
        for bound in self._sockets:
            self._loop.remove_reader(bound.fileno())
            if bound in self._pauses:
                self._pauses.pop(bound).cancel()
            self._accept(bound, _BACKLOG)
            bound.close()
        self._sockets.clear()
        if self._greeting:
            # Those that were taken just now may bring a request.
            await asyncio.wait(self._greeting, timeout=_GREETING_S)

    def abort(self) -> None:
        """End the handshakes that are under way."""
        for task in self._greeting:
            task.cancel()

    def _accept(self, bound: socket.socket, most: int) -> None:
        for _ in range(most):
            try:
                connection, _ = bound.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                # The client left while it waited.
                continue
            except OSError as error:
                self._pause(bound, error)
                return
            self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        if len(self._open) >= self._most:
            connection.close()
            if not self._full:
                _log.warning("connections are closed: max_connections is %d", self._most)
            self._full = True
            return
        self._open.add(connection)
        task = self._loop.create_task(self._greet(connection))
        self._greeting.add(task)
        task.add_done_callback(self._greeting.discard)

    async def _greet(self, connection: socket.socket) -> None:
        """Make the connection, after its TLS handshake."""
        connection.settimeout(0)
        made = ClientConnection(self._app, self._timeouts, self._register)
        made.when_lost = partial(self._release, connection)
        tls = self._tls()
        times: dict[str, float] = {}
        if tls is not None:
            times = {
                "ssl_handshake_timeout": self._timeouts.read_s,
                "ssl_shutdown_timeout": _GOODBYE_S,
            }
        try:
            await self._loop.connect_accepted_socket(lambda: made, connection, ssl=tls, **times)
        except (OSError, ssl.SSLError, asyncio.CancelledError):
            # The handshake failed, or took too long.
            return
        finally:
            if not made.is_made:
                connection.close()
                self._release(connection)

    def _release(self, connection: socket.socket) -> None:
        self._open.discard(connection)
        # Only when there is room again, the next refusal is worth a line.
        self._full = self._full and len(self._open) > self._most * 0.9

    def _pause(self, bound: socket.socket, error: OSError) -> None:
        """Let the queue wait: there are no files or no memory, and asking again helps nobody."""
        if bound in self._pauses or bound not in self._sockets:
            return
        _log.error("no connection can be accepted now: %s", error.strerror)
        self._loop.remove_reader(bound.fileno())
        self._pauses[bound] = self._loop.call_later(_PAUSE_S, self._resume, bound)

    def _resume(self, bound: socket.socket) -> None:
        del self._pauses[bound]
        self._loop.add_reader(bound.fileno(), self._accept, bound, _AT_ONCE)
