"""JSON requests to an upstream, and HTTP errors as failures."""

from __future__ import annotations

import asyncio
import email.utils
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from afterword.core.errors import ContextLengthExceeded
from afterword.gateway.address import Address
from afterword.gateway.failures import (
    ClientsFault,
    Overloaded,
    Refused,
    StreamBroke,
    UpstreamFailure,
)
from afterword.gateway.lenient import decoder
from afterword.gateway.long_payload import LONG_BYTES
from afterword.gateway.transport.client import HttpClient
from afterword.gateway.transport.connection import Head
from afterword.gateway.transport.long_json import encoded, is_long

T = TypeVar("T")

_REST_S = 1.0
_MOST_REST_S = 60.0
_BOM = b"\xef\xbb\xbf"
_CONTEXT_CODE = ContextLengthExceeded.default_code
_FULL = (
    429, 503, "429", "503", "rate_limit_exceeded", "rate_limit_error", "engine_overloaded",
    "overloaded_error",
)  # fmt: skip
"""What servers that are full say in an error of a stream, as ``code`` or ``type``."""
_REQUESTS_FAULT = ("invalid_request_error", "BadRequestError")


class Api:
    """Sends JSON requests to one upstream; each answer must come within ``timeout_s``."""

    def __init__(self, client: HttpClient, address: Address, *, timeout_s: float) -> None:
        self.address = address
        self._client = client
        self._timeout_s = timeout_s

    async def get(self, path: str, answer: type[T]) -> T:
        """GET a path. Returns the body, decoded as ``answer``. Raises ``UpstreamFailure``."""
        return await self._read("GET", path, None, decoder(answer))

    async def post(self, path: str, body: Mapping[str, object], answer: type[T]) -> T:
        """POST a body as JSON. Returns the answer as ``answer``. Raises ``UpstreamFailure``."""
        return await self.ask(path, body, decoder(answer))

    async def ask(self, path: str, body: Mapping[str, object], read: Callable[[bytes], T]) -> T:
        """POST a body as JSON. Returns what ``read`` makes of the answer.

        Threads write and read what is long. Raises ``UpstreamFailure``.
        """
        sent = await asyncio.to_thread(encoded, body) if is_long(body) else encoded(body)
        return await self._read("POST", path, sent, read)

    async def check(self, path: str) -> None:
        """GET a path and ignore the body. Raises ``UpstreamFailure`` unless the status is 200."""
        await self._receive("GET", path, None)

    async def _receive(self, method: str, path: str, body: bytes | None) -> bytes:
        head, received = await self._client.exchange(method, path, body, timeout_s=self._timeout_s)
        if head.status != 200:
            raise failure_of(head, received)
        return received

    async def _read(
        self, method: str, path: str, body: bytes | None, read: Callable[[bytes], T]
    ) -> T:
        received = (await self._receive(method, path, body)).removeprefix(_BOM)
        try:
            if len(received) < LONG_BYTES:
                return read(received)
            return await asyncio.to_thread(read, received)
        except StreamBroke:
            raise StreamBroke(f"its answer to {method} {path} is not the expected JSON") from None


def failure_of(head: Head, body: bytes) -> UpstreamFailure:
    """Returns the failure of an answer whose status is not 200."""
    status = head.status
    if status in {400, 413, 422}:
        return clients_fault(_json(body))
    if status in {429, 503}:
        return Overloaded(status, rest_s=_rest_s(head))
    if status in {401, 403}:
        return Refused("it does not accept this server's key")
    if status == 404:
        return Refused("it does not serve this model")
    return Refused(f"it answered with status {status}")


def clients_fault(error: Any) -> ClientsFault:  # noqa: ANN401 - any JSON value
    """Returns the failure of a request, from an error in any shape that servers use."""
    inner = error.get("error", error) if isinstance(error, dict) else error
    said = inner if isinstance(inner, dict) else {"message": inner}
    message = said.get("message") or said.get("detail")
    text = message if isinstance(message, str) else ""
    param = said.get("param")
    too_long = said.get("code") == _CONTEXT_CODE or "maximum context length" in text
    return ClientsFault(
        text,
        param=param if isinstance(param, str) else None,
        code=_CONTEXT_CODE if too_long else None,
    )


def failure_in_stream(error: Any) -> UpstreamFailure:  # noqa: ANN401 - any JSON value
    """Returns the failure of an error event: the request's fault, load, or the upstream's."""
    said = error if isinstance(error, dict) else {}
    if said.get("code") in _FULL or said.get("type") in _FULL:
        return Overloaded(503, rest_s=_REST_S)
    if said.get("code") in (400, "400") or said.get("type") in _REQUESTS_FAULT:
        return clients_fault(error)
    return Refused("it reported an error of its own")


def failure_of_event(payload: bytes) -> UpstreamFailure:
    """Returns the failure of an event that is called error."""
    said = _json(payload)
    return failure_in_stream(said.get("error", said) if isinstance(said, dict) else said)


def _json(body: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Returns the JSON in a body; None if there is none."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _rest_s(head: Head) -> float:
    """Returns ``Retry-After`` in seconds; a date counts from the upstream's own ``Date``."""
    text = head.headers.get("retry-after", "")
    # Not isdigit alone: it takes signs that float refuses.
    if text.isascii() and text.isdigit():
        return min(float(text), _MOST_REST_S)
    try:
        until = email.utils.parsedate_to_datetime(text)
        now = email.utils.parsedate_to_datetime(head.headers.get("date", ""))
        rest_s = (until - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return _REST_S
    return max(0.0, min(rest_s, _MOST_REST_S))
