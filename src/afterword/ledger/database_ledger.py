"""The part of an open ledger that needs a database: its writer, its thread, its queries."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import sqlalchemy as sa

from afterword.core.account import UsageRecord
from afterword.core.errors import ConfigError
from afterword.ledger.access import Clocks
from afterword.ledger.admin_queries import LedgerQueries
from afterword.ledger.alive import AliveLock, alive_folder
from afterword.ledger.presence import Presence
from afterword.ledger.process import ProcessIdentity
from afterword.ledger.writer import LedgerWriter, LedgerWriterThread


class DatabaseLedger(msgspec.Struct, frozen=True):
    """Closed by ``close``, which writes what is pending."""

    engine: sa.Engine
    writer: LedgerWriter
    thread: LedgerWriterThread
    queries: LedgerQueries
    alive: AliveLock

    def close(self) -> None:
        """Write, sign off, end the thread. Waits for the database."""
        self.thread.close()
        self.alive.__exit__(None, None, None)
        self.engine.dispose()


def open_database_ledger(  # noqa: PLR0913 - what an open ledger knows
    engine: sa.Engine,
    identity: ProcessIdentity,
    journals: Path,
    *,
    pending: deque[UsageRecord],
    clocks: Clocks,
    entropy: Callable[[int], bytes],
    on_written: Callable[[Sequence[str]], None],
    presence: Presence,
) -> DatabaseLedger:
    """Write what is ``pending``, read the keys, start the thread; owns ``engine`` from here on.

    Raises ``ConfigError`` if the database cannot be used.
    """
    alive = AliveLock(alive_folder(engine, journals), identity.id, presence)
    try:
        # Before others hear of this process.
        alive.__enter__()
    except OSError as error:
        engine.dispose()
        raise ConfigError(f"the ledger's lock cannot be taken: {error.strerror}") from error
    writer = LedgerWriter(
        engine, identity, journals, clock=clocks.monotonic, on_written=on_written, pending=pending
    )
    writer.flush()
    while writer.reachable and not writer.keys_are_read:
        writer.flush()
    if not writer.reachable:
        alive.__exit__(None, None, None)
        engine.dispose()
        raise ConfigError("the ledger's database cannot be used")
    thread = LedgerWriterThread(writer)
    thread.start()
    queries = LedgerQueries(engine, clock=clocks.unix, entropy=entropy)
    return DatabaseLedger(engine, writer, thread, queries, alive)
