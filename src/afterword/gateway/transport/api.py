"""Whole answers of an upstream: JSON in, JSON out, and errors as failures."""

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
    """Asks one upstream. ``base`` paths are those below its ``/v1``, ``root`` ones beside it."""

    def __init__(self, client: HttpClient, address: Address, *, timeout_s: float) -> None:
        self.address = address
        self._client = client
        self._timeout_s = timeout_s

    async def get(self, path: str, answer: type[T]) -> T:
        """The answer to a GET. Raises ``UpstreamFailure``."""
        return await self._ask("GET", path, None, answer)

    async def post(self, path: str, body: object, answer: type[T]) -> T:
        """The answer to a POST. Raises ``UpstreamFailure``."""
        return await self._ask("POST", path, _encode(body), answer)

    async def check(self, path: str) -> None:
        """See that a GET is answered with a 200, whatever is in it. Raises ``UpstreamFailure``."""
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
            raise StreamBroke(f"its answer to {method} {path} is not what it should be") from None


class _Error(msgspec.Struct):
    message: str = ""
    param: str | None = None
    code: str | int | None = None


def failure_of(head: Head, body: bytes) -> UpstreamFailure:
    """What an answer that is not 200 means."""
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
    """The upstream's own words about a request, in the contract's envelope."""
    said = _error_in(body)
    message = said.message[:_SHOWN_CHARACTERS] or "The server of this model refused the request."
    too_long = said.code == _CONTEXT_CODE or "maximum context length" in message
    code = said.code if isinstance(said.code, str) else None
    return InvalidRequest(message, param=said.param, code=_CONTEXT_CODE if too_long else code)


def failure_in_stream(error: Any) -> UpstreamFailure:  # noqa: ANN401 - whatever JSON gave
    """What an error event means: the request's fault, or the upstream's."""
    said = error if isinstance(error, dict) else {}
    if said.get("code") in {400, "400"} or said.get("type") in _REQUESTS_FAULT:
        return ClientsFault(clients_fault(msgspec.json.encode(error)))
    return Refused("it reported an error of its own")


def _error_in(body: bytes) -> _Error:
    """An error in any of the shapes that servers give it."""
    try:
        raw: Any = msgspec.json.decode(body)
        inner = raw.get("error", raw) if isinstance(raw, dict) else raw
        return msgspec.convert(inner, _Error) if isinstance(inner, dict) else _Error(str(inner))
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
        return _Error()


def _rest_s(head: Head) -> float:
    """``Retry-After`` in seconds; a date is held against the upstream's own clock."""
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
