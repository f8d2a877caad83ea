"""The HTTP server as a process: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from afterword.core.errors import ConfigError
from afterword.http.lifecycle import Lifecycle

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BACKLOG = 2048
_IDLE_CONNECTION_S = 75
"""Longer than the minute after which proxies and SDKs drop idle connections themselves."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound and does not listen yet. Raises ``ConfigError``."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError(f"host {host}: {error.strerror}") from error
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a client on this machine finds the socket."""
    host, port = bound.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - shown, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn, which the first signal drains and the second stops; either way it returns."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        lifecycle: Lifecycle,
        grace_s: int,
        on_ready: Callable[[], None],
        on_hangup: Callable[[], Coroutine[None, None, None]],
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                interface="asgi3",
                access_log=False,
                log_config=None,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_IDLE_CONNECTION_S,
                timeout_graceful_shutdown=grace_s,
            )
        )
        self._lifecycle = lifecycle
        self._on_ready = on_ready
        self._on_hangup = on_hangup
        self._hangup: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Without raising them again at the end, as uvicorn would: a drained server exits 0."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        try:
            yield
        finally:
            for number in (*_SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _hang_up(self) -> None:
        if self._hangup is None or self._hangup.done():
            self._hangup = asyncio.get_running_loop().create_task(self._on_hangup())

    def _stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
        self._lifecycle.draining = True
