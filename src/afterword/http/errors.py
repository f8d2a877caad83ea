"""The one place where exceptions become a status and an envelope (H1, H10).

An exception of our own making speaks for itself. Of any other, the client learns the request id
and the log the place: never the exception's text, which may quote the request.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
from starlette.exceptions import HTTPException
from starlette.types import Scope

from afterword.core import wire
from afterword.core.errors import (
    ApiError,
    BudgetExceeded,
    MethodNotAllowed,
    RateLimited,
    UnknownUrl,
)
from afterword.core.faults import in_one_line
from afterword.http.exchange import Exchange

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode

_OUR_FAULT = (
    "The server had an error while processing your request. Sorry about that! "
    "You can retry your request; if the error persists, tell the operator of this server."
)
_SHOWN_PATH_CHARACTERS = 200


class ErrorAnswer(msgspec.Struct, frozen=True):
    """Status, headers and body of an answer that says what is wrong."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


def error_answer(error: Exception, scope: Scope, exchange: Exchange) -> ErrorAnswer:
    """The answer to a request that cannot be honoured; logs what nobody foresaw."""
    known = _as_api_error(error, scope, exchange)
    headers = [(b"content-type", b"application/json")]
    if known.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % known.retry_after_s))
    if known.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, HTTPException) and error.headers and "Allow" in error.headers:
        # Starlette joins a set: without sorting, the order changes from run to run.
        allowed = sorted(error.headers["Allow"].split(", "))
        headers.append((b"allow", ", ".join(allowed).encode()))
    body = _encode(wire.ErrorEnvelope(error_body(known, exchange)))
    return ErrorAnswer(known.status, headers, body)


def error_event(error: Exception, scope: Scope, exchange: Exchange) -> bytes:
    """The frame that ends a stream in which something went wrong (S6)."""
    known = _as_api_error(error, scope, exchange)
    return b"data: %b\n\n" % _encode(wire.ErrorEnvelope(error_body(known, exchange)))


def error_body(error: ApiError, exchange: Exchange) -> wire.ErrorBody:
    """The inside of OpenAI's envelope; of a fault of ours it names the request (H10)."""
    message = error.message
    if error.status == ApiError.status:
        message = f"{message} (request id {exchange.request_id})"
    return wire.ErrorBody(message, error.type, error.param, error.code)


def _as_api_error(error: Exception, scope: Scope, exchange: Exchange) -> ApiError:
    """What is wrong in the terms of ``core.errors``; the exchange takes note."""
    exchange.outcome = "refused"
    if isinstance(error, RateLimited):
        exchange.limited_by, exchange.rates = error.limit, error.rates
    if isinstance(error, BudgetExceeded):
        exchange.limited_by = "budget"
    if isinstance(error, ApiError):
        if error.status == ApiError.status:
            exchange.outcome = "failed"
            _log_fault(error, exchange)
        return error
    if isinstance(error, HTTPException) and error.status_code in {404, 405}:
        message = f"Invalid URL ({scope['method']} {scope['path'][:_SHOWN_PATH_CHARACTERS]})"
        return UnknownUrl(message) if error.status_code == 404 else MethodNotAllowed(message)
    exchange.outcome = "failed"
    _log_fault(error, exchange)
    return ApiError(_OUR_FAULT)


def _log_fault(error: Exception, exchange: Exchange) -> None:
    _log.error("%s failed: %s", exchange.request_id, in_one_line(error))
