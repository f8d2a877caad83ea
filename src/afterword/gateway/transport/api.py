"""JSON requests to an upstream, and HTTP errors as failures."""

from __future__ import annotations

import email.utils
from typing import Any, TypeVar

import msgspec

from afterword.core.errors import ContextLengthExceeded, InvalidRequest
from afterword.gateway.address import Address
from afterword.gateway.failures import (
    ClientsFault,
    Overloaded,
    Refused,
    StreamBroke,
    UpstreamFailure,
)
from afterword.gateway.transport.connection import Head, HttpClient

T = TypeVar("T")

_REST_S = 1.0
_MOST_REST_S = 60.0
_SHOWN_CHARACTERS = 500
_encode = msgspec.json.Encoder().encode
_CONTEXT_CODE = ContextLengthExceeded.default_code
_REQUESTS_FAULT = ("invalid_request_error", "BadRequestError")


class Api:
    """Sends JSON requests to one upstream; each answer must come within ``timeout_s``."""

    def __init__(self, client: HttpClient, address: Address, *, timeout_s: float) -> None:
        self.address = address
        self._client = client
        self._timeout_s = timeout_s

    async def get(self, path: str, answer: type[T]) -> T:
        """GET a path. Returns the body, decoded as ``answer``. Raises ``UpstreamFailure``."""
        return await self._ask("GET", path, None, answer)

    async def post(self, path: str, body: object, answer: type[T]) -> T:
        """POST a body as JSON. Returns the answer as ``answer``. Raises ``UpstreamFailure``."""
        return await self._ask("POST", path, _encode(body), answer)

    async def check(self, path: str) -> None:
        """GET a path and ignore the body. Raises ``UpstreamFailure`` unless the status is 200."""
        await self._receive("GET", path, None)

    async def _receive(self, method: str, path: str, body: bytes | None) -> bytes:
        head, received = await self._client.exchange(method, path, body, timeout_s=self._timeout_s)
        if head.status != 200:
            raise failure_of(head, received)
        return received

    async def _ask(self, method: str, path: str, body: bytes | None, answer: type[T]) -> T:
        received = await self._receive(method, path, body)
        try:
            return msgspec.json.decode(received, type=answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise StreamBroke(f"its answer to {method} {path} is not the expected JSON") from None


class _Error(msgspec.Struct):
    message: str = ""
    param: str | None = None
    code: str | int | None = None


def failure_of(head: Head, body: bytes) -> UpstreamFailure:
    """Returns the failure of an answer whose status is not 200."""
    status = head.status
    if status in {400, 413, 422}:
        return ClientsFault(clients_fault(body))
    if status in {429, 503}:
        return Overloaded(status, rest_s=_rest_s(head))
    if status in {401, 403}:
        return Refused("it does not accept this server's key")
    if status == 404:
        return Refused("it does not serve this model")
    return Refused(f"it answered with status {status}")


def clients_fault(body: bytes) -> InvalidRequest:
    """Returns the upstream's own error text about a request as the contract's error."""
    said = _error_in(body)
    message = said.message[:_SHOWN_CHARACTERS] or "The server of this model refused the request."
    too_long = said.code == _CONTEXT_CODE or "maximum context length" in message
    code = said.code if isinstance(said.code, str) else None
    return InvalidRequest(message, param=said.param, code=_CONTEXT_CODE if too_long else code)


def failure_in_stream(error: Any) -> UpstreamFailure:  # noqa: ANN401 - any JSON value
    """Returns the failure of an error event: the request's fault, or the upstream's."""
    said = error if isinstance(error, dict) else {}
    if said.get("code") in {400, "400"} or said.get("type") in _REQUESTS_FAULT:
        return ClientsFault(clients_fault(msgspec.json.encode(error)))
    return Refused("it reported an error of its own")


def _error_in(body: bytes) -> _Error:
    """Returns the error in a body, in any shape that servers use; empty if there is none."""
    try:
        raw: Any = msgspec.json.decode(body)
        inner = raw.get("error", raw) if isinstance(raw, dict) else raw
        return msgspec.convert(inner, _Error) if isinstance(inner, dict) else _Error(str(inner))
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
        return _Error()


def _rest_s(head: Head) -> float:
    """Returns ``Retry-After`` in seconds; a date counts from the upstream's own ``Date``."""
    text = head.headers.get("retry-after", "")
    if text.isdigit():
        return min(float(text), _MOST_REST_S)
    try:
        until = email.utils.parsedate_to_datetime(text)
        now = email.utils.parsedate_to_datetime(head.headers.get("date", ""))
        rest_s = (until - now).total_seconds()
    except (ValueError, TypeError):
        return _REST_S
    return max(0.0, min(rest_s, _MOST_REST_S))
