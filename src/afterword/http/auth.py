"""Who asks: the key of a request, and what is refused or left unsaid without one."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Container
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from afterword.core.account import Principal
from afterword.core.errors import AuthenticationFailed
from afterword.core.ledger import Ledger
from afterword.http.exchange import exchange_of

_BEARER = b"bearer "


class Authentication:
    """Around the routes: every path that is not open belongs to somebody.

    With ``guarded``, requests that need no key are answered on behalf of this machine only: not
    for pages of other sites that a browser here has open, whatever name they gave this address.

    Paths that are ``discreet`` are open, and say more to whoever would get in elsewhere.
    """

    def __init__(
        self,
        routes: ASGIApp,
        ledger: Ledger,
        *,
        is_open: Callable[[str], bool],
        discreet: Container[str] = (),
        guarded: bool,
        origins: Container[str] = (),
    ) -> None:
        self.routes = routes
        self._ledger = ledger
        self._is_open = is_open
        self._discreet = discreet
        self._guarded = guarded
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request whose sender is known."""
        if scope["type"] == "http":
            path, exchange = scope["path"], exchange_of(scope)
            if path in self._discreet:
                with suppress(AuthenticationFailed):
                    exchange.principal = await self._principal(scope)
            elif not self._is_open(path):
                exchange.principal = await self._principal(scope)
        await self.routes(scope, receive, send)

    async def _principal(self, scope: Scope) -> Principal:
        """Whose request it is. Raises ``AuthenticationFailed``; a wrong key waits first."""
        headers = dict(scope["headers"])
        source = scope["client"][0] if scope.get("client") else ""
        principal = await self._ledger.authenticate(_secret(headers), source)
        if principal.key_id is None and self._guarded:
            _refuse_strangers(headers, self._origins)
        return principal


def _secret(headers: dict[bytes, bytes]) -> str | None:
    """The key of ``Authorization: Bearer``."""
    given = headers.get(b"authorization", b"")
    if given[: len(_BEARER)].lower() != _BEARER:
        return None
    return given[len(_BEARER) :].strip().decode("latin-1")


def _refuse_strangers(headers: dict[bytes, bytes], origins: Container[str]) -> None:
    """Refuse what a browser sends for a page of another site."""
    host = headers.get(b"host", b"").decode("latin-1")
    origin = headers.get(b"origin", b"").decode("latin-1")
    foreign = origin and origin.rpartition("//")[2] != host and origin not in origins
    if foreign or not _is_here(host):
        raise AuthenticationFailed(
            "Without a key this server answers programs on its own machine, not pages of other "
            "sites. Make a key: afterword keys create NAME"
        )


def _is_here(host: str) -> bool:
    """Whether a ``Host`` is a name of the machine that the client is on."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost" or name.endswith(".localhost"):
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
