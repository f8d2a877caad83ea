"""The seam of the ledger: what other layers expect from it."""

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from afterword.core.account import (
    Ask,
    KeyTerms,
    KeyView,
    NewKey,
    Principal,
    Rates,
    Spent,
    UsageBy,
    UsageQuery,
    UsageRecord,
    UsageSum,
)


class Reservation(Protocol):
    """The worst case of one request, reserved from the limits and the budget of its key."""

    @property
    def rates(self) -> Rates:
        """The key's limits with this request admitted."""

    async def settle(self, spent: Spent) -> None:
        """Record what the request used, and give back the rest.

        When it returns, the record outlives this process. A cancelled call still finishes what it
        began. A reservation is settled or released, once.
        """

    def release(self) -> None:
        """Give back everything. The request leaves no record."""


class LedgerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges and counters of a ledger at one moment. Counters only grow."""

    reachable: bool = True
    unsettled: int = 0
    pending_writes: int = 0
    journal_bytes: int = 0
    written: int = 0
    refused_keys: int = 0


class Ledger(Protocol):
    """Decides whose a key is and what it may use; records what was used."""

    async def authenticate(self, secret: str | None, source: str) -> Principal:
        """Returns the owner of a key, or ``NOBODY`` if no key is needed.

        ``source`` is the client's address; it slows down guessing. Raises
        ``AuthenticationFailed``.
        """

    async def reserve(self, principal: Principal, ask: Ask) -> Reservation:
        """Reserve the worst case of a request from its key's limits and budget.

        Raises ``RateLimited``, ``BudgetExceeded`` and ``LedgerUnavailable``.
        """

    async def rates(self, principal: Principal) -> Rates:
        """Returns the limits per minute of a key as they stand; none if they cannot be seen."""

    def ready(self) -> bool:
        """Whether requests can be admitted and recorded."""

    def figures(self) -> LedgerFigures:
        """Gauges and counters at this moment."""


class AdminQueries(Protocol):
    """The ledger for operators. Methods raise ``LedgerUnavailable`` if the database is away."""

    def now(self) -> float:
        """Unix seconds by the ledger's clock."""

    async def create_key(self, terms: KeyTerms) -> NewKey:
        """Make a key. Raises ``InvalidRequest`` for a taken name."""

    def keys(self) -> AsyncIterator[list[KeyView]]:
        """Returns all keys in pages, revoked ones too, oldest first."""

    async def key(self, key: str) -> KeyView:
        """Returns a key by id or name. Raises ``InvalidRequest`` if there is none."""

    async def rotate_key(self, key: str, overlap_s: float) -> NewKey:
        """Give a key a new secret. The old ones stay good for ``overlap_s`` seconds."""

    async def revoke_key(self, key: str) -> KeyView:
        """Revoke a key, within a second on every server of the ledger. Idempotent."""

    async def usage(self, by: UsageBy, query: UsageQuery) -> list[UsageSum]:
        """Returns sums of the selected records, largest first, days in order."""

    async def requests(self, query: UsageQuery, *, after: str, most: int) -> list[UsageRecord]:
        """Returns at most ``most`` selected records, as they began, behind that of id ``after``.

        Raises ``InvalidRequest`` if ``after`` is not empty and no record's id.
        """
