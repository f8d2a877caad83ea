"""The protocol of a writer of records and claims, and the writer of a server without a database."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import Protocol

import msgspec

from afterword.core.account import UsageRecord
from afterword.core.errors import LedgerUnavailable
from afterword.ledger.keyring import Keyring


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The worst case of a request, to be taken out of a budget."""

    id: str
    key_id: str
    period: str
    tokens: int
    budget_tokens: int


class RecordWriter(Protocol):
    """Keeps records and decides claims, later or on another thread. No method waits."""

    @property
    def keyring(self) -> Keyring:
        """The keys as they are known now."""

    @property
    def reachable(self) -> bool:
        """Whether claims can be decided now."""

    @property
    def pending_writes(self) -> int:
        """Ended requests that are not in the database yet."""

    @property
    def written(self) -> int:
        """Ended requests that this process wrote to the database."""

    def claim(self, claim: Claim) -> Future[int | None]:
        """Reserve from a budget. The future has None, or the tokens left if they are too few.

        It raises ``LedgerUnavailable`` if the database is away.
        """

    def ended(self, record: UsageRecord) -> None:
        """Take the record of a request that has ended."""

    def released(self, request_id: str) -> None:
        """Give back a claim."""


class PendingRecords:
    """A ``RecordWriter`` without a database: there is no key, and records wait in memory.

    The journal has the same records. ``pending`` is handed to the writer that comes later.
    """

    reachable = True
    written = 0

    def __init__(self) -> None:
        self.keyring = Keyring(needed=False)
        self.pending: deque[UsageRecord] = deque()

    @property
    def pending_writes(self) -> int:
        """See ``RecordWriter``."""
        return len(self.pending)

    def claim(self, claim: Claim) -> Future[int | None]:
        """Refuse: without keys there are no budgets."""
        raise LedgerUnavailable(f"There is no budget of {claim.key_id}.")

    def ended(self, record: UsageRecord) -> None:
        """See ``RecordWriter``."""
        self.pending.append(record)

    def released(self, request_id: str) -> None:
        """Do nothing: nothing was claimed."""
