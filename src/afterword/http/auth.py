"""Who asks: the key of a request, and what is refused without one."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Container
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from afterword.core.errors import AuthenticationFailed
from afterword.core.protocols import Ledger
from afterword.http.exchange import exchange_of

_BEARER = b"bearer "


class Authentication:
    """Around the routes: every path that is not open belongs to somebody.

    With ``guarded``, requests that need no key are answered on behalf of this machine only: not
    for pages of other sites that a browser here has open, whatever name they gave this address.
    """

    def __init__(
        self,
        routes: ASGIApp,
        ledger: Ledger,
        *,
        is_open: Callable[[str], bool],
        guarded: bool,
        origins: Container[str] = (),
    ) -> None:
        self.routes = routes
        self._ledger = ledger
        self._is_open = is_open
        self._guarded = guarded
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request whose sender is known."""
        if scope["type"] == "http" and not self._is_open(scope["path"]):
            headers = dict(scope["headers"])
            source = scope["client"][0] if scope.get("client") else ""
            principal = await self._ledger.authenticate(_secret(headers), source)
            if principal.key_id is None and self._guarded:
                _refuse_strangers(headers, self._origins)
            exchange_of(scope).principal = principal
        await self.routes(scope, receive, send)


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
