"""One request and its answer, as the headers, the log line and the metrics see them."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec
from starlette.types import Scope

from afterword.core import wire
from afterword.core.account import STRANGER, Principal, Rates

Outcome: TypeAlias = Literal["answered", "refused", "failed", "client_gone", "cancelled"]


class Exchange(msgspec.Struct, kw_only=True):
    """Written while the request goes its way, read once at its end.

    ``status`` is None until the status line is sent. Times are seconds of the app's clock.
    It never holds a prompt, a completion or a key. ``limited_by`` is the limit that refused it.
    """

    request_id: str
    started_s: float
    status: int | None = None
    outcome: Outcome = "cancelled"
    model: str | None = None
    stream: bool = False
    first_token_s: float | None = None
    usage: wire.Usage | None = None
    principal: Principal = STRANGER
    rates: Rates = Rates()
    limited_by: str | None = None


_KEY = "afterword.exchange"


def attach(scope: Scope, exchange: Exchange) -> None:
    """Make the exchange known to the routes."""
    scope[_KEY] = exchange


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that the scope belongs to."""
    exchange: Exchange = scope[_KEY]
    return exchange
