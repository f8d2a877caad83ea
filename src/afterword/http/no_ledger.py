"""The ledger of an app without one: it needs no key, limits nothing and keeps nothing."""

from __future__ import annotations

from afterword.core.account import NOBODY, Ask, Principal, Rates, Spent
from afterword.core.ledger import LedgerFigures


class FreeReservation:
    """A ``Reservation`` of nothing."""

    rates = Rates()

    async def settle(self, spent: Spent) -> None:
        """Keep nothing."""

    def release(self) -> None:
        """Give back nothing."""


class NoLedger:
    """A ``core.ledger.Ledger`` that admits everything."""

    async def authenticate(self, secret: str | None, source: str) -> Principal:  # noqa: ARG002 - nobody is asked
        """Returns ``NOBODY``."""
        return NOBODY

    async def reserve(self, principal: Principal, ask: Ask) -> FreeReservation:  # noqa: ARG002 - all is admitted
        """Admit the request."""
        return FreeReservation()

    async def rates(self, principal: Principal) -> Rates:  # noqa: ARG002 - nobody has limits
        """Returns no limits."""
        return Rates()

    def ready(self) -> bool:
        """Always."""
        return True

    def figures(self) -> LedgerFigures:
        """Zeros."""
        return LedgerFigures()
