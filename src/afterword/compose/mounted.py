"""``create_app``: the server's ASGI application for programs that mount it in their own."""

from __future__ import annotations

import asyncio
import os
import time
from types import TracebackType
from typing import Self

from starlette.types import ASGIApp, Receive, Scope, Send

from afterword.compose.progress import Quiet
from afterword.compose.services import load_service
from afterword.config import Settings
from afterword.core.errors import AfterwordError
from afterword.http.app import Access
from afterword.http.app import create_app as create_asgi_app
from afterword.http.exchange import MOUNTED_AT
from afterword.http.lifecycle import Lifecycle


def create_app(settings: Settings | None = None) -> MountedApp:
    """Returns an ASGI 3 application that serves the models of some settings.

    It has every route of the server except the page. It keeps no ledger and knows no keys: the
    program around it decides who may come in. Unless ``no_auth`` is set, it answers only requests
    whose ``Host`` is this machine or an address. Settings of the network have no effect.

    The models are opened at the lifespan's start, as ``async with app`` begins, or at the first
    request; they are closed at the lifespan's end, or with the block, and opened anew by the next
    one. Mounting passes no lifespan on, so a program that mounts the app enters it in its own.
    """
    return MountedApp(settings or Settings())


class MountedApp:
    """An ASGI application that opens a service in the loop that runs it; see ``create_app``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lifecycle = Lifecycle()
        self._life: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[ASGIApp] | None = None
        self._leave = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or live through a lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        app = await self._opened()
        await app(_unmounted(scope), receive, send)

    async def __aenter__(self) -> Self:
        """Open the models. Raises ``ConfigError`` if one cannot be opened."""
        self._renew()
        await self._opened()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the models; running answers end with an error."""
        await self._close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._renew()
                try:
                    await self._opened()
                except AfterwordError as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _renew(self) -> None:
        """Begin a new life after an earlier one: tests enter an app several times, in any loop."""
        if self._leave.is_set():
            self._lifecycle, self._leave, self._ready = Lifecycle(), asyncio.Event(), None

    async def _opened(self) -> ASGIApp:
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()
            self._life = asyncio.create_task(self._live(self._ready))
        # A request that is cancelled meanwhile does not stop the others' wait.
        return await asyncio.shield(self._ready)

    async def _live(self, ready: asyncio.Future[ASGIApp]) -> None:
        """Open and close the service in one task."""
        settings = self._settings
        try:
            async with load_service(settings, Quiet()) as service:
                ready.set_result(
                    create_asgi_app(
                        service,
                        lifecycle=self._lifecycle,
                        clock=time.monotonic,
                        entropy=os.urandom,
                        keep_alive_s=settings.keep_alive_s,
                        access=Access(
                            guarded=not settings.no_auth,
                            origins=settings.origins(),
                            proxies=settings.proxies(),
                            cache_scope=settings.cache_scope,
                        ),
                    )
                )
                await self._leave.wait()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    async def _close(self) -> None:
        self._lifecycle.draining = True
        self._leave.set()
        if self._life is not None:
            await self._life


def _unmounted(scope: Scope) -> Scope:
    """Returns the scope without the path that the app is mounted at, and without its parameters.

    One of that path would be taken for one of this app's: ``model`` is in both. ``MOUNTED_AT``
    keeps the path.
    """
    root: str = scope.get("root_path", "")
    path: str = scope.get("path", "")
    if not root or not path.startswith(root):
        return scope
    path = path.removeprefix(root) or "/"
    return {**scope, "root_path": "", MOUNTED_AT: root, "path": path, "path_params": {}}
