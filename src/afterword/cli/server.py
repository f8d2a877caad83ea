"""The server's life: its signals, its certificate, its shutdown."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress

import msgspec
from starlette.types import ASGIApp

from afterword.cli.sockets import load_tls
from afterword.core.errors import ConfigError
from afterword.http.lifecycle import Lifecycle
from afterword.http.server.connection import Timeouts
from afterword.http.server.listener import Listener
from afterword.http.server.register import Register

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LINGER_S = 1.0
"""The wait for arriving requests at shutdown."""
_START_S = 0.05
"""Requests that have arrived start within this time, before new ones are refused."""


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of connections, TLS files, and ``grace_s``, the seconds for answers at shutdown."""

    grace_s: float
    timeouts: Timeouts
    max_connections: int
    certfile: str | None = None
    keyfile: str | None = None


class Server:
    """Serves an app; the first signal drains it, the second stops it, and it returns after both.

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
        self._options = options
        self._tls = load_tls(options.certfile, options.keyfile)
        self._lifecycle = lifecycle
        self._on_ready = on_ready
        self._on_reload = on_reload
        self._reloading: asyncio.Task[None] | None = None
        self._asked_again = False
        self._stopping = asyncio.Event()
        self._forced = asyncio.Event()
        self._register = Register()
        self._listener = Listener(
            app,
            self._register,
            options.timeouts,
            most=options.max_connections,
            tls=lambda: self._tls,
        )

    async def serve(self, sockets: list[socket.socket]) -> None:
        """Listen on the sockets, and return when all is answered after a signal."""
        with self._signals():
            for bound in sockets:
                self._listener.listen(bound)
            self._on_ready()
            await self._stopping.wait()
            forced = asyncio.create_task(self._forced.wait())
            drained = asyncio.create_task(self._drain())
            await asyncio.wait((forced, drained), return_when=asyncio.FIRST_COMPLETED)
            for task in (forced, drained):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await drained
            self._listener.abort()
            await self._register.cut()

    def stop(self) -> None:
        """Drain. The second call stops at once."""
        if self._stopping.is_set():
            self._forced.set()
        self._stopping.set()
        self._lifecycle.leaving = True

    async def _drain(self) -> None:
        """Accept connections that still wait, finish their answers, then close all.

        A request may be arriving on an open connection, or its connection may wait in the
        kernel's queue. Closing at once would lose it.
        """
        await self._listener.close()
        await self._wait_until(lambda: not self._register.some_idle(), _LINGER_S)
        self._register.finish()
        await asyncio.sleep(_START_S)
        self._lifecycle.draining = True
        await self._wait_until(self._register.is_empty, self._options.grace_s)

    async def _wait_until(self, met: Callable[[], bool], seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._register.wait_until(met), seconds)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        # One that came during the start has waited (``cli.serve``).
        before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for number in (*_SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _reload(self) -> None:
        # What is changed during a reload may not have been read by it.
        self._asked_again = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self._reread())

    async def _reread(self) -> None:
        options = self._options
        while self._asked_again:
            self._asked_again = False
            try:
                tls = load_tls(options.certfile, options.keyfile)
                await self._on_reload()
                self._tls = tls
            except ConfigError as error:
                _log.error("not reloaded: %s", error)
