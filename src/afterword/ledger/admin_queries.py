"""Keys and usage for operators over HTTP. Each call runs in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from afterword.core.account import (
    KeyTerms,
    KeyView,
    NewKey,
    UsageBy,
    UsageQuery,
    UsageRecord,
    UsageSum,
)
from afterword.core.errors import LedgerUnavailable
from afterword.ledger.keys import KeyStore
from afterword.ledger.store import UsageStore

P = ParamSpec("P")
T = TypeVar("T")


class LedgerQueries:
    """``core.ledger.AdminQueries`` on a database."""

    def __init__(
        self, engine: sa.Engine, *, clock: Callable[[], float], entropy: Callable[[int], bytes]
    ) -> None:
        self._keys = KeyStore(engine, clock=clock, entropy=entropy)
        self._usage = UsageStore(engine)
        self._clock = clock

    def now(self) -> float:
        """Unix seconds."""
        return self._clock()

    async def create_key(self, terms: KeyTerms) -> NewKey:
        """See ``AdminQueries``."""
        return await _in_thread(self._keys.create, terms)

    async def keys(self) -> AsyncIterator[list[KeyView]]:
        """See ``AdminQueries``."""
        last: KeyView | None = None
        while page := await _in_thread(self._keys.page, last):
            yield page
            last = page[-1]

    async def key(self, key: str) -> KeyView:
        """See ``AdminQueries``."""
        return await _in_thread(self._keys.find, key)

    async def rotate_key(self, key: str, overlap_s: float) -> NewKey:
        """See ``AdminQueries``."""
        return await _in_thread(self._keys.rotate, key, overlap_s)

    async def revoke_key(self, key: str) -> KeyView:
        """See ``AdminQueries``."""
        return await _in_thread(self._keys.revoke, key)

    async def usage(self, by: UsageBy, query: UsageQuery) -> list[UsageSum]:
        """See ``AdminQueries``."""
        return await _in_thread(self._usage.sums, by, query)

    async def requests(self, query: UsageQuery, *, after: str, most: int) -> list[UsageRecord]:
        """See ``AdminQueries``."""
        return await _in_thread(self._usage.requests, query, after=after, most=most)


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except SQLAlchemyError as error:
        raise LedgerUnavailable("The ledger cannot be reached.", retry_after_s=1) from error
