"""JSON requests to an upstream, and HTTP errors as failures."""

from __future__ import annotations

import asyncio
import email.utils
import re
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
_KINDS = ("code", "type", "error_type", "status_code", "http_status_code")
"""Where servers say the kind of an error: as a name, or as a status of HTTP."""
_KINDS_BY_WORDS = {
    "Model is overloaded": "overloaded",
    "Request failed during generation": "generation",
    "Incomplete generation": "incomplete_generation",
    "Stream event serialization error": "stream_serialization_error",
}
"""How messages of text-generation-inference begin, and its own names of their kinds.

In the streams of OpenAI's routes, it calls every error an ``http_status_code`` of 422.
"""
_FULL = frozenset({
    "429", "503", "529", "rate_limit_exceeded", "rate_limit_error", "engine_overloaded",
    "overloaded_error", "overloaded", "unavailable_error",
})  # fmt: skip
_REQUESTS_FAULT = frozenset({
    "400", "413", "422", "invalid_request_error", "BadRequestError", "exceed_context_size_error",
    "validation",
})  # fmt: skip
_TOO_LONG = re.compile(
    r"context (?:length|size|window)|maximum allowed length|`inputs` must have less than"
    r"|`inputs` tokens \+ `max_new_tokens` must be"
)
"""In the refusals of vLLM, OpenAI and llama-server, of SGLang, and of text-generation-inference."""


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
        if head.status == 404:
            # Not of a model: the address, or its dialect, may be that of another server.
            raise Refused(f"it has no {method} {path.partition('?')[0]}")
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
    too_long = said.get("code") == _CONTEXT_CODE or _TOO_LONG.search(text) is not None
    return ClientsFault(
        text,
        param=param if isinstance(param, str) else None,
        code=_CONTEXT_CODE if too_long else None,
    )


def failure_in_stream(error: Any) -> UpstreamFailure:  # noqa: ANN401 - any JSON value
    """Returns the failure of an error event: the request's fault, load, or the upstream's.

    ``error`` is the event, or the ``error`` in it.
    """
    outer = error if isinstance(error, dict) else {}
    inner = outer.get("error")
    said = {**outer, **inner} if isinstance(inner, dict) else outer
    kinds = {str(said[name]) for name in _KINDS if isinstance(said.get(name), str | int)}
    if "http_status_code" in said:
        text = str(said.get("message"))
        kinds = {kind for words, kind in _KINDS_BY_WORDS.items() if text.startswith(words)} or kinds
    if not kinds.isdisjoint(_FULL):
        return Overloaded(503, rest_s=_REST_S)
    if not kinds.isdisjoint(_REQUESTS_FAULT):
        return clients_fault(error)
    return Refused("it reported an error of its own")


def failure_of_event(payload: bytes) -> UpstreamFailure:
    """Returns the failure of an event that is called error."""
    return failure_in_stream(_json(payload))


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
