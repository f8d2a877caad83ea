"""Keys that are made and revoked while servers run: each soon opens every server, and soon none."""

from __future__ import annotations

import asyncio
import itertools
import time

import httptools
import sqlalchemy as sa

from afterword.core.account import KeyTerms
from afterword.ledger.keys import KeyStore
from chaos.clients import Clients, Target
from chaos.weather import Weather
from chaos.wire import Wire, request_bytes

_SOON_S = 10.0
"""Servers look within a second; a busy machine gets some more."""
_PAUSE_S = 0.2


class PassingKeys:
    """Makes and revokes keys, as ``afterword keys`` does. ``secrets`` are by name."""

    def __init__(
        self, store: KeyStore, targets: list[Target], clients: Clients, weather: Weather
    ) -> None:
        self.secrets: dict[str, str] = {}
        self._store = store
        self._targets = targets
        self._clients = clients
        self._weather = weather
        self._numbers = itertools.count()

    async def pass_by(self) -> None:
        """One key: made, used on every server, revoked, and refused everywhere."""
        name = f"passing-{next(self._numbers)}"
        try:
            made = await asyncio.to_thread(self._store.create, KeyTerms(name=name))
            self.secrets[name] = made.secret
            for target in self._targets:
                if await self._becomes(target, name, 200):
                    await self._clients.ask(
                        target, "with a new key", target.bodies.short(), key=name,
                        secret=made.secret,
                    )  # fmt: skip
            await asyncio.to_thread(self._store.revoke, name)
        except sa.exc.OperationalError:
            self._clients.counts["keys that a locked or full database refused"] += 1
            return
        for target in self._targets:
            await self._becomes(target, name, 401)
        self._clients.counts["keys made and revoked"] += 1

    async def _becomes(self, target: Target, name: str, status: int) -> bool:
        """Ask until the server answers the key with a status. Returns whether it did.

        Not to do so is wrong, unless something else was.
        """
        began_s = time.monotonic()
        server = target.member.name
        said = 0
        while time.monotonic() < began_s + _SOON_S:
            said = await self._status(target, name)
            if said == status:
                return True
            await asyncio.sleep(_PAUSE_S)
        if not self._weather.met(
            server, began_s, time.monotonic(), "killed", "stopped", "locked", "full", after_s=15
        ):
            self._clients.book.wrong.append(
                f"a key on {server} is answered with {said}, not {status}, after {_SOON_S:.0f} s"
            )
        return False

    async def _status(self, target: Target, name: str) -> int:
        raw = request_bytes(b"", method="GET", path="/v1/models", key=self.secrets[name])
        try:
            async with Wire(target.member.port) as wire:
                await wire.send(raw)
                return (await wire.reply()).status
        except (OSError, httptools.HttpParserError):
            return 0
