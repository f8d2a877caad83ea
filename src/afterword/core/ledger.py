"""The seams of the ledger: what the layers expect of it."""

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
    """The worst case of one request, taken out of what its key may spend."""

    @property
    def rates(self) -> Rates:
        """How the key's limits stood with this request admitted."""

    async def settle(self, spent: Spent) -> None:
        """Keep what the request came to, and give back the rest.

        When it returns, the record outlives this process. It may be cancelled: what it began is
        then finished all the same. A reservation is settled or released, once.
        """

    def release(self) -> None:
        """Give back everything: the request was not admitted and leaves no record."""


class LedgerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges and counters of a ledger at one moment; counters only grow."""

    reachable: bool = True
    unsettled: int = 0
    pending_writes: int = 0
    journal_bytes: int = 0
    written: int = 0
    refused_keys: int = 0


class Ledger(Protocol):
    """Who may spend how much, and what was spent."""

    async def authenticate(self, secret: str | None, source: str) -> Principal:
        """Whose key this is; ``source`` is where it came from, so that guessing can be slowed.

        None gives ``NOBODY`` where no key is needed. Raises ``AuthenticationFailed``.
        """

    async def reserve(self, principal: Principal, ask: Ask) -> Reservation:
        """Take the worst case of a request out of what its key may spend.

        Raises ``RateLimited``, ``BudgetExceeded`` and ``LedgerUnavailable``.
        """

    def ready(self) -> bool:
        """Whether requests can be admitted and recorded."""

    def figures(self) -> LedgerFigures:
        """Gauges and counters at this moment."""


class AdminQueries(Protocol):
    """The ledger as operators use it. Raises ``LedgerUnavailable`` where it cannot be reached."""

    def now(self) -> float:
        """Unix seconds by the ledger's clock."""

    async def create_key(self, terms: KeyTerms) -> NewKey:
        """Make a key. ``InvalidRequest`` for a name that is taken."""

    async def keys(self) -> list[KeyView]:
        """Every key, revoked ones included, in the order of their making."""

    async def key(self, key: str) -> KeyView:
        """One key by id or name. ``InvalidRequest`` where there is none."""

    async def rotate_key(self, key: str, overlap_s: float) -> NewKey:
        """A new secret for a key; the old ones go on for ``overlap_s`` seconds."""

    async def revoke_key(self, key: str) -> KeyView:
        """End a key, within a second on every server that shares the ledger. Idempotent."""

    async def usage(self, by: UsageBy, query: UsageQuery) -> list[UsageSum]:
        """Sums of the records meant, largest first, days in order."""

    async def requests(self, query: UsageQuery, *, after: str, most: int) -> list[UsageRecord]:
        """At most ``most`` records in the order of their ids, from the one after ``after`` on."""
