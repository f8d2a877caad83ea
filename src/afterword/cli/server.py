"""The HTTP server: its connections, its signals, its shutdown."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager

import msgspec
import uvicorn
from starlette.types import ASGIApp

from afterword.cli.connections import GuardedConnection, guarded
from afterword.cli.sockets import load_tls
from afterword.core.errors import ConfigError
from afterword.http.lifecycle import Lifecycle

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BACKLOG = 2048
_LINGER_S = 1.0
"""The wait for arriving requests at shutdown."""
_LINGER_STEP_S = 0.05
_IDLE_CONNECTION_S = 75
"""Longer than the minute after which proxies and SDKs close idle connections themselves."""


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of connections, TLS files, and ``grace_s``, the seconds for answers at shutdown."""

    grace_s: int
    read_timeout_s: float
    max_connections: int
    certfile: str | None = None
    keyfile: str | None = None


class Server(uvicorn.Server):
    """uvicorn; the first signal drains it, the second stops it, and it returns after both.

    ``on_ready`` is called when it listens. SIGHUP calls ``on_reload`` and reads the certificate
    again.
    """

    def __init__(
        self,
        app: ASGIApp,
        options: ServerOptions,
        *,
        lifecycle: Lifecycle,
        on_ready: Callable[[], None],
        on_reload: Callable[[], Coroutine[None, None, None]],
    ) -> None:
        self._protocol = guarded(
            read_timeout_s=options.read_timeout_s, max_connections=options.max_connections
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=self._protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                access_log=False,
                log_config=None,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_IDLE_CONNECTION_S,
                timeout_graceful_shutdown=options.grace_s,
                ssl_certfile=options.certfile,
                ssl_keyfile=options.keyfile,
            )
        )
        self._options = options
        self._tls = load_tls(options.certfile, options.keyfile)
        self._lifecycle = lifecycle
        self._on_ready = on_ready
        self._on_reload = on_reload
        self._reloading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then call ``on_ready``."""
        if self.config.ssl is not None:
            self.config.ssl.sni_callback = self._present
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals without raising them again, as uvicorn does: a drained server exits 0."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            yield
        finally:
            for number in (*_SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections that still wait, finish their answers, then shut down.

        A request may be arriving on an open connection, or its connection may wait in the
        kernel's queue. Closing at once would lose it.
        """
        waiting = [listening.dup() for listening in sockets or ()]
        for server in self.servers:
            server.close()
        for line in waiting:
            with line:
                await self._take_from(line)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + _LINGER_S
        # uvicorn has no event for the end of a connection or for a signal.
        while self._idle() and loop.time() < until_s and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(_LINGER_STEP_S)
        for connection in list(self.server_state.connections):
            connection.shutdown()
        # Requests that have arrived start before new ones are refused.
        await asyncio.sleep(_LINGER_STEP_S)
        self._lifecycle.draining = True
        await super().shutdown(sockets)

    async def _take_from(self, line: socket.socket) -> None:
        """Accept and serve the connections in the kernel's queue."""
        loop = asyncio.get_running_loop()
        line.settimeout(0)
        while True:
            try:
                connection, _ = line.accept()
            except OSError:
                # The queue is empty.
                return
            await loop.connect_accepted_socket(self._connected, connection, ssl=self.config.ssl)

    def _connected(self) -> asyncio.Protocol:
        return self._protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    def _idle(self) -> bool:
        """Returns whether a connection is open without an answer in progress."""
        return any(
            isinstance(connection, GuardedConnection) and connection.is_idle()
            for connection in self.server_state.connections
        )

    def _present(self, connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        """Give a new connection the current certificate.

        Loading it into the listening context would not do: if the kind of key changes, the context
        keeps the old certificate, too.
        """
        if self._tls is not None:
            connection.context = self._tls

    def _reload(self) -> None:
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self._reread())

    async def _reread(self) -> None:
        options = self._options
        try:
            self._tls = load_tls(options.certfile, options.keyfile)
            await self._on_reload()
        except ConfigError as error:
            _log.error("not reloaded: %s", error)

    def _stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
        self._lifecycle.leaving = True
