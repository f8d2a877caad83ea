"""The key of a request, and what is refused or hidden without one."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afterword.core.account import Principal, Rates
from afterword.core.errors import AuthenticationFailed, RateLimited
from afterword.core.ledger import Ledger
from afterword.http.client import ClientDisconnected
from afterword.http.exchange import exchange_of

ALL_ORIGINS = "*"
"""Among the origins it means that of every page."""
_BEARER = b"bearer "


class Authentication:
    """Wraps the routes: a request on a path that is not open needs a principal.

    ``guarded``: a request without a key is answered only to programs on this machine, not to
    pages of other sites in its browser, even if their host name leads here.

    ``discreet`` paths are open, but tell more to a request that other paths would admit.

    ``asking`` maps paths to open ones whose page asks for a key. A browser that has sent none gets
    that page in place of the refusal, because it cannot send a key by itself.
    """

    def __init__(  # noqa: PLR0913 - what only the composition root knows
        self,
        routes: ASGIApp,
        ledger: Ledger,
        *,
        is_open: Callable[[str], bool],
        discreet: Container[str] = (),
        asking: Mapping[str, str] | None = None,
        guarded: bool,
        origins: Container[str] = (),
    ) -> None:
        self.routes = routes
        self._ledger = ledger
        self._is_open = is_open
        self._discreet = discreet
        self._asking = asking or {}
        self._guarded = guarded
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authenticate the request, then pass it on."""
        if scope["type"] == "http":
            path, exchange = scope["path"], exchange_of(scope)
            if path in self._discreet:
                with suppress(AuthenticationFailed):
                    exchange.principal = await self._principal(scope)
            elif not self._is_open(path):
                try:
                    exchange.principal = await self._principal(scope)
                except AuthenticationFailed:
                    if path not in self._asking or not _is_browser_without_key(scope):
                        raise
                    scope = {**scope, "path": self._asking[path]}
            if exchange.principal.key_id is not None:
                await self._answer_with_rates(scope, receive, send)
                return
        await self.routes(scope, receive, send)

    async def _answer_with_rates(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, with the state of the key's limits if the request was not counted in them."""
        exchange = exchange_of(scope)

        async def note_rates() -> None:
            if exchange.status is None and exchange.rates == Rates():
                exchange.rates = await self._ledger.rates(exchange.principal)

        async def send_after_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                await note_rates()
            await send(message)

        try:
            await self.routes(scope, receive, send_after_note)
        except (ClientDisconnected, RateLimited):
            # Nobody reads the answer, or the error has the rates.
            raise
        except Exception:
            await note_rates()
            raise

    async def _principal(self, scope: Scope) -> Principal:
        """Returns the principal. Raises ``AuthenticationFailed``, late for a wrong key."""
        headers = dict(scope["headers"])
        source = exchange_of(scope).client
        principal = await self._ledger.authenticate(given_key(headers), source)
        if principal.key_id is None and self._guarded:
            _refuse_strangers(headers, self._origins)
        return principal


def _is_browser_without_key(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    wants_page = scope["method"] in {"GET", "HEAD"} and b"text/html" in headers.get(b"accept", b"")
    return wants_page and b"authorization" not in headers


def given_key(headers: Mapping[bytes, bytes]) -> str | None:
    """Returns the key of ``Authorization: Bearer``, or without that of ``api-key``, as in Azure."""
    given = headers.get(b"authorization")
    if given is None and b"api-key" in headers:
        return headers[b"api-key"].strip().decode("latin-1")
    given = given or b""
    if given[: len(_BEARER)].lower() != _BEARER:
        return None
    return given[len(_BEARER) :].strip().decode("latin-1")


def _refuse_strangers(headers: dict[bytes, bytes], origins: Container[str]) -> None:
    """Raises ``AuthenticationFailed`` for a request of another site's page."""
    host = headers.get(b"host", b"").decode("latin-1")
    origin = headers.get(b"origin", b"").decode("latin-1")
    named = origin in origins or ALL_ORIGINS in origins
    foreign = origin and origin.rpartition("//")[2] != host and not named
    if foreign or not _is_here(host):
        raise AuthenticationFailed(
            "Without a key this server answers programs on its own machine, not pages of other "
            "sites. Make a key: afterword keys create NAME"
        )


def _is_here(host: str) -> bool:
    """Whether a ``Host`` header names the client's own machine, or is an address."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost" or name.endswith(".localhost"):
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
