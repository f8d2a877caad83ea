"""Guarded connections: silent, slow and dead ones are closed, and so are endless requests.

The protocol is uvicorn's, which by itself waits without limit and takes headers of any length.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from afterword.core.machine import death_options

_log = logging.getLogger(__name__)

MOST_HEAD_BYTES = 65_536
_LEAST_BYTES_PER_S = 65_536
"""A body may take longer than the timeout if it arrives at this rate."""
_DEATH_OPTIONS = death_options()


class GuardedConnection(HttpToolsProtocol):
    """One connection. A request must arrive within ``read_timeout_s``, its head in 64 KiB."""

    read_timeout_s = 30.0
    max_connections = 1024

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or close it if there are too many."""
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            _log.warning("a connection was closed: max_connections is %d", self.max_connections)
            transport.abort()
            return
        _detect_death(transport)
        self._expect()

    def is_idle(self) -> bool:
        """Returns whether no answer is in progress; a request may still be arriving."""
        return self.cycle is None or self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the bytes; refuse a head of more than 64 KiB."""
        if self._timer is not None and self._head_bytes >= 0:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
                b"connection: close\r\ncontent-length: 0\r\n\r\n"
            )
            self.transport.close()

    def on_message_begin(self) -> None:
        """Start the timer of a request if it does not run yet."""
        super().on_message_begin()
        if self._timer is None:
            self._expect()

    def on_headers_complete(self) -> None:
        """Stop counting the bytes of the head."""
        self._head_bytes = -1
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Extend the deadline by the size of the part."""
        self._deadline_s += len(body) / _LEAST_BYTES_PER_S
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the timer: the request is complete."""
        self._arrived()
        super().on_message_complete()

    def _expect(self) -> None:
        self._head_bytes = 0
        self._deadline_s = self.loop.time() + self.read_timeout_s
        self._timer = self.loop.call_at(self._deadline_s, self._look)

    def _arrived(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        if self.loop.time() < self._deadline_s:
            self._timer = self.loop.call_at(self._deadline_s, self._look)
        else:
            self._timer = None
            self.transport.abort()


def guarded(*, read_timeout_s: float, max_connections: int) -> type[GuardedConnection]:
    """Returns the protocol class with an operator's limits."""
    limits: dict[str, Any] = {"read_timeout_s": read_timeout_s, "max_connections": max_connections}
    return type("Connection", (GuardedConnection,), limits)


def _detect_death(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in {socket.AF_INET, socket.AF_INET6}:
        for level, option, value in _DEATH_OPTIONS:
            connection.setsockopt(level, option, value)
