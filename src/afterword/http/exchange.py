"""One request and its answer, for the headers, the log line and the metrics."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

import msgspec
from starlette.types import Scope

from afterword.core import wire
from afterword.core.account import STRANGER, Principal, Rates

Outcome: TypeAlias = Literal["answered", "refused", "failed", "client_gone", "cancelled"]


class BodyWriter(Protocol):
    """Sends parts of a body without ASGI's ``send``, which costs more than most parts do.

    For an answer that has begun, and for all parts but the last.
    """

    def is_free(self) -> bool:
        """Returns whether the client takes a part now."""

    def write_part(self, body: bytes) -> None:
        """Send a part."""


class Exchange(msgspec.Struct, kw_only=True):
    """Filled while the request runs, read once at its end.

    ``path`` is the one that the client asked for; a scope's is the route's.
    ``status`` is None until the status line is sent. Times are seconds of the app's clock.
    ``client`` is the client's address, empty if it has none. ``model`` is set once it is known to
    be served, ``asked_model`` is what the request said. ``limited_by`` is the limit that refused
    the request, ``code`` and ``param`` are those of the error. There is no prompt, completion or
    key.
    """

    request_id: str
    path: str
    started_s: float
    client: str = ""
    status: int | None = None
    outcome: Outcome = "cancelled"
    model: str | None = None
    stream: bool = False
    first_token_s: float | None = None
    usage: wire.Usage | None = None
    principal: Principal = STRANGER
    rates: Rates = Rates()
    limited_by: str | None = None
    asked_model: str | None = None
    code: str | None = None
    param: str | None = None


REFUSED = "afterword.refused"
"""The key in a scope of the error that answers a request which the server could not read (H15)."""
MOUNTED_AT = "afterword.mounted_at"
"""The key in a scope of the path that the app is mounted at in another application."""
BODY_WRITER = "afterword.body_writer"
"""The key in a scope of the ``BodyWriter`` of this server. Other servers have none."""
_KEY = "afterword.exchange"
_EASY_BODY_BYTES = 1 << 20


def attach(scope: Scope, exchange: Exchange) -> None:
    """Put the exchange into the scope."""
    scope[_KEY] = exchange


def exchange_of(scope: Scope) -> Exchange:
    """Returns the scope's exchange."""
    exchange: Exchange = scope[_KEY]
    return exchange


def asked_model(body: bytes) -> str | None:
    """Returns the model that a refused body names, if that is easy to see."""
    if len(body) > _EASY_BODY_BYTES:
        return None
    try:
        return msgspec.json.decode(body, type=_Asked).model
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class _Asked(msgspec.Struct, frozen=True):
    """The part of a body that the log shows although it is refused."""

    model: str | None = None
