"""The outermost ASGI app: request id, headers of every answer, error envelopes, one log line."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import msgspec
from msgspec.structs import replace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afterword.core.account import Rates
from afterword.core.errors import UnknownUrl
from afterword.core.faults import without_keys
from afterword.http.auth import given_key
from afterword.http.client import ClientDisconnected, send_whole
from afterword.http.errors import error_answer
from afterword.http.exchange import REFUSED, Exchange, attach
from afterword.http.lifecycle import Lifecycle
from afterword.http.metrics import Metrics
from afterword.http.paths import canonical
from afterword.http.proxies import Network, client_address

_access = logging.getLogger("afterword.access")
_encoder = msgspec.json.Encoder()
_LOGGED_CHARACTERS = 200
_MOST_SEARCHED_CHARACTERS = 65_536
_CLIENT_GONE = 499


class AccessRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The log line of a request. ``route`` is the path's template.

    ``model`` is what the request asked for, ``limit`` the limit that refused it, ``code`` and
    ``param`` are those of its error.
    """

    request_id: str
    method: str
    path: str
    route: str
    status: int
    outcome: str
    duration_ms: float
    model: str | None = None
    stream: bool = False
    first_token_ms: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    key: str | None = None
    key_name: str | None = None
    client: str | None = None
    code: str | None = None
    param: str | None = None
    limit: str | None = None


Observer: TypeAlias = Callable[[AccessRecord, Mapping[bytes, bytes]], None]
"""Called at the end of every request, with its record and its headers."""


class Boundary:
    """Wraps the routes: every request gets an id, and no exception leaves.

    ``clock`` returns monotonic seconds, ``entropy(n)`` returns n random bytes. ``proxies`` are
    believed about the client's address. ``observe`` is called at the end of every request.
    """

    def __init__(  # noqa: PLR0913 - what only the composition root knows
        self,
        routes: ASGIApp,
        *,
        clock: Callable[[], float],
        entropy: Callable[[int], bytes],
        lifecycle: Lifecycle,
        metrics: Metrics,
        proxies: Sequence[Network] = (),
        observe: Observer | None = None,
    ) -> None:
        self._routes = routes
        self._proxies = proxies
        self._clock = clock
        self._entropy = entropy
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._routes(scope, receive, send)
            return
        request_id = f"req_{self._entropy(16).hex()}"
        exchange = Exchange(request_id=request_id, path=scope["path"], started_s=self._clock())
        peer = scope["client"][0] if scope.get("client") else ""
        exchange.client = client_address(peer, scope["headers"], self._proxies)
        scope["path"] = canonical(scope["path"])
        attach(scope, exchange)
        # With an app in the scope, Starlette raises errors instead of answering in plain text.
        scope["app"] = self

        async def send_stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers(exchange)]
                exchange.status = message["status"]
            try:
                await send(message)
            except OSError as error:
                raise ClientDisconnected from error

        try:
            await self._answer(scope, receive, send_stamped, exchange)
        finally:
            self._record(scope, exchange)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        try:
            try:
                _check_readable(scope)
                await self._routes(scope, receive, send)
                if exchange.outcome == "cancelled":
                    exchange.outcome = "answered"
            except ClientDisconnected:
                raise
            except Exception as error:  # noqa: BLE001 - H10: every exception gets an envelope
                answer = error_answer(error, scope, exchange)
                # An answer that breaks midway stays unfinished: the server closes the connection.
                if exchange.status is None:
                    await send_whole(send, answer.status, answer.headers, answer.body)
        except ClientDisconnected:
            exchange.outcome = "client_gone"

    def _headers(self, exchange: Exchange) -> list[tuple[bytes, bytes]]:
        elapsed_ms = int((self._clock() - exchange.started_s) * 1000)
        headers = [
            (b"x-request-id", exchange.request_id.encode()),
            (b"openai-processing-ms", b"%d" % elapsed_ms),
            (b"openai-version", b"2020-10-01"),
            (b"x-content-type-options", b"nosniff"),
        ]
        headers += rate_headers(exchange.rates)
        if self._lifecycle.leaving or self._lifecycle.draining:
            headers.append((b"connection", b"close"))
        return headers

    def _record(self, scope: Scope, exchange: Exchange) -> None:
        route = scope["route"].path if "route" in scope else "(none)"
        status = _CLIENT_GONE if exchange.status is None else exchange.status
        ended_s = self._clock()
        self._metrics.record(exchange, route=route, status=status, ended_s=ended_s)
        if self._observe is None and not _access.isEnabledFor(logging.INFO):
            return
        headers = dict(scope["headers"])
        principal = exchange.principal
        asked = exchange.asked_model or exchange.model
        record = AccessRecord(
            request_id=exchange.request_id,
            method=scope["method"],
            path=_shown(exchange.path, headers),
            route=route,
            status=status,
            outcome=exchange.outcome,
            duration_ms=_ms(exchange.started_s, ended_s),
            model=None if asked is None else _shown(asked, headers),
            stream=exchange.stream,
            key=principal.key_id,
            key_name=None if principal.key_id is None else principal.name,
            client=exchange.client or None,
            code=exchange.code,
            param=None if exchange.param is None else _shown(exchange.param, headers),
            limit=exchange.limited_by,
        )
        if exchange.first_token_s is not None:
            waited_ms = _ms(exchange.started_s, exchange.first_token_s)
            record = replace(record, first_token_ms=waited_ms)
        usage = exchange.usage
        if usage is not None:
            record = replace(
                record,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.prompt_tokens_details.cached_tokens,
                completion_tokens=usage.completion_tokens,
            )
        line = _encoder.encode(record).decode()
        _access.info("%s", line, extra={"fields": record})
        if self._observe is not None:
            self._observe(record, headers)


def _shown(text: str, headers: Mapping[bytes, bytes]) -> str:
    """Returns text of the client's for the log: short, whole characters, and without a key."""
    whole = text[:_MOST_SEARCHED_CHARACTERS].encode("utf-8", "replace").decode()
    return without_keys(whole, given_key(headers))[:_LOGGED_CHARACTERS]


def _check_readable(scope: Scope) -> None:
    """Raises what the server found wrong with a request that it could not read (H15).

    The patterns of the routes skip a newline at the end of a path, so it is refused here.
    """
    if REFUSED in scope:
        raise scope[REFUSED]
    if scope["path"].endswith("\n"):
        raise UnknownUrl(f"Invalid URL ({scope['method']} {without_keys(scope['path'][:-1])})")


def rate_headers(rates: Rates) -> Iterator[tuple[bytes, bytes]]:
    """Yields three headers for each limit per minute that the key has."""
    for unit, rate in ((b"requests", rates.requests), (b"tokens", rates.tokens)):
        if rate is not None:
            yield b"x-ratelimit-limit-%b" % unit, b"%d" % rate.limit
            yield b"x-ratelimit-remaining-%b" % unit, b"%d" % rate.remaining
            yield b"x-ratelimit-reset-%b" % unit, _span(rate.reset_s)


def _span(seconds: float) -> bytes:
    """Returns a time as OpenAI writes it, rounded up: 20ms, 7.5s, 1m0s."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if milliseconds < 1000:
        return b"%dms" % milliseconds
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s".encode()
    whole = math.ceil(milliseconds / 1000)
    return b"%dm%ds" % divmod(whole, 60)


def _ms(start_s: float, end_s: float) -> float:
    return round((end_s - start_s) * 1000, 1)
