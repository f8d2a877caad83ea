"""Turns exceptions into a status and an envelope. No other module does (H1, H10).

An ``ApiError`` brings its own message. For any other exception the client gets the request id and
the log gets the place. Neither gets the exception's text, which may quote the request.
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
    AuthenticationFailed,
    BudgetExceeded,
    MethodNotAllowed,
    RateLimited,
    UnknownUrl,
    UpstreamFailed,
)
from afterword.core.faults import in_one_line, without_keys
from afterword.http.exchange import Exchange
from afterword.http.frames import frame
from afterword.http.paths import instead_of

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode

_OUR_FAULT = (
    "The server had an error while processing your request. Sorry about that! "
    "You can retry your request; if the error persists, tell the operator of this server."
)
_SHOWN_PATH_CHARACTERS = 200


class ErrorAnswer(msgspec.Struct, frozen=True):
    """Status, headers and body of an error answer."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


def error_answer(error: Exception, scope: Scope, exchange: Exchange) -> ErrorAnswer:
    """Returns the answer to a request that failed. Logs faults of the server."""
    known = _as_api_error(error, scope, exchange)
    headers = [(b"content-type", b"application/json")]
    if known.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % known.retry_after_s))
    if known.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, HTTPException) and error.headers and "Allow" in error.headers:
        # Starlette joins a set. Without sorting the order would change from run to run.
        allowed = sorted(error.headers["Allow"].split(", "))
        headers.append((b"allow", ", ".join(allowed).encode()))
    body = _encode(wire.ErrorEnvelope(error_body(known, exchange)))
    return ErrorAnswer(known.status, headers, body)


def error_event(error: Exception, scope: Scope, exchange: Exchange) -> bytes:
    """Returns the frame that ends a failed stream (S6)."""
    known = _as_api_error(error, scope, exchange)
    return frame(wire.ErrorEnvelope(error_body(known, exchange)))


def error_body(error: ApiError, exchange: Exchange) -> wire.ErrorBody:
    """Returns the inside of the envelope. A fault of the server names the request id (H10)."""
    message, param = error.message, error.param
    if error.status == ApiError.status:
        message = f"{message} (request id {exchange.request_id})"
    # A key may stand wherever an error quotes the request. Only H3 shows the ends of a wrong one.
    if not isinstance(error, AuthenticationFailed):
        message = without_keys(message)
        param = None if param is None else without_keys(param)
    return wire.ErrorBody(message, error.type, param, error.code)


def _as_api_error(error: Exception, scope: Scope, exchange: Exchange) -> ApiError:
    """Returns the error as an ``ApiError``, and notes the outcome in the exchange."""
    exchange.outcome = "refused"
    if isinstance(error, RateLimited):
        exchange.limited_by, exchange.rates = error.limit, error.rates
    if isinstance(error, BudgetExceeded):
        exchange.limited_by = "budget"
    if isinstance(error, ApiError):
        exchange.code, exchange.param = error.code, error.param
        if error.status == ApiError.status:
            exchange.outcome = "failed"
            _log_fault(error, exchange)
        elif isinstance(error, UpstreamFailed):
            # The gateway has logged why.
            exchange.outcome = "failed"
        return error
    if isinstance(error, HTTPException) and error.status_code in {404, 405}:
        path = without_keys(exchange.path)[:_SHOWN_PATH_CHARACTERS]
        message = f"Invalid URL ({scope['method']} {path})"
        if error.status_code == 405:
            return MethodNotAllowed(message)
        instead = instead_of(scope["path"])
        return UnknownUrl(f"{message}. {instead}" if instead else message)
    exchange.outcome = "failed"
    _log_fault(error, exchange)
    return ApiError(_OUR_FAULT)


def _log_fault(error: Exception, exchange: Exchange) -> None:
    _log.error("%s failed: %s", exchange.request_id, in_one_line(error))
