"""Pages of other sites: what a browser asks before it sends a request, and what it may read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from afterword.core.errors import InvalidRequest

_EXPOSED_HEADERS = (
    "x-request-id", "openai-processing-ms", "openai-version", "retry-after",
    *(f"x-ratelimit-{what}-{unit}" for unit in ("requests", "tokens")
      for what in ("limit", "remaining", "reset")),
)  # fmt: skip


class Preflights:
    """Wraps the routes: answers preflights, the questions of browsers, which bring no key.

    It stands inside what makes request ids, envelopes and the log. ``OriginHeaders`` stands around
    that, so that pages can read errors, too.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self.cors = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST", "DELETE"),
            # Libraries add headers of their own: openai-node sends x-stainless-*.
            allow_headers=("*",),
            # A page on the internet asks with this before it sends to a server at home.
            allow_private_network=True,
            expose_headers=_EXPOSED_HEADERS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises ``InvalidRequest`` for a page that may not send it."""
        if not _is_preflight(scope):
            await self._app(scope, receive, send)
            return
        answer = self.cors.preflight_response(Headers(scope=scope))
        if answer.status_code != 200:
            raise InvalidRequest(f"{bytes(answer.body).decode()}.")
        await answer(scope, receive, send)


class OriginHeaders:
    """Wraps the whole app: an allowed page may read every answer."""

    def __init__(self, app: ASGIApp, cors: CORSMiddleware) -> None:
        self._app = app
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and not _is_preflight(scope):
            send = partial(self._cors.send, send=send, request_headers=Headers(scope=scope))
        await self._app(scope, receive, send)


def _is_preflight(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    return {b"origin", b"access-control-request-method"} <= {name for name, _ in scope["headers"]}
