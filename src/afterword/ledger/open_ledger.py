"""A ledger, opened: journal, rate limiter and database, closed in the right order.

A server without keys opens no database and does not import SQLAlchemy. Its requests are recorded
in the journal alone, until there is a database to write them to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from afterword.core.errors import ConfigError
from afterword.core.faults import in_one_line
from afterword.ledger.access import AccessLedger, Clocks, Policy
from afterword.ledger.folder import has_database, journals_in
from afterword.ledger.journal import SEGMENT_BYTES, Journal
from afterword.ledger.other_journals import orphaned_bytes
from afterword.ledger.presence import Presence
from afterword.ledger.process import ProcessIdentity
from afterword.ledger.rate_limits import MemoryRateLimiter, RateLimiter
from afterword.ledger.record_writer import PendingRecords

if TYPE_CHECKING:
    import sqlalchemy as sa

    from afterword.ledger.admin_queries import LedgerQueries
    from afterword.ledger.database_ledger import DatabaseLedger
    from afterword.ledger.redis import RedisRateLimiter
    from afterword.ledger.writer import LedgerWriter

_log = logging.getLogger(__name__)

_SYNC_S = 1.0
_RENEW_ROUNDS = 20
_END_S = 5.0
WATCH_S = 0.4
"""How often a server without keys looks for a database."""
_MOST_PENDING = 1000
_ORPHANS_S = 5.0


class LedgerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where a ledger is kept.

    ``database`` None is a file in ``folder``. ``redis`` None counts limits in this process.
    ``presence`` is what commands on this folder may know of the server.
    """

    folder: Path
    database: str | None = None
    redis: str | None = None
    journal_bytes: int = 256 << 20
    policy: Policy = Policy()
    presence: Presence = Presence()

    @property
    def journals(self) -> Path:
        """The folder of journals."""
        return journals_in(self.folder)

    def keyless(self) -> bool:
        """Whether a server can start without a database, because no key can exist yet.

        False too if a dead process left a long journal: somebody has to write it.
        """
        if self.database is not None or self.redis is not None:
            return False
        return not has_database(self.folder) and orphaned_bytes(self.journals) < SEGMENT_BYTES


class OpenLedger:
    """What an open ledger offers: ``access`` to requests, ``queries`` to operators.

    It belongs to the event loop's thread. Invariant: ``access`` writes to the database if one is
    open, otherwise to ``_pending``.
    """

    def __init__(
        self,
        access: AccessLedger,
        journal: Journal,
        pending: PendingRecords,
        folder: Path,
        connect: Callable[[sa.Engine | None], DatabaseLedger],
    ) -> None:
        """``connect`` opens a database, the file in ``folder`` if it is given None."""
        self.access = access
        self._journal = journal
        self._pending = pending
        self._folder = folder
        self._connect = connect
        self._database: DatabaseLedger | None = None
        self._opening: asyncio.Task[None] | None = None
        self._failure = ""
        self._orphans_at_s = 0.0

    @property
    def queries(self) -> LedgerQueries | None:
        """Keys and usage; None while no database is open, and so no key exists."""
        return None if self._database is None else self._database.queries

    @property
    def writer(self) -> LedgerWriter:
        """The writer of the open database."""
        if self._database is None:
            raise RuntimeError("no database is open")
        return self._database.writer

    async def attach(self, engine: sa.Engine) -> None:
        """Write to this database from here on, with all of its keys. Raises ``ConfigError``."""
        self._opening = asyncio.create_task(self._attach(engine))
        # ``aclose`` waits for the thread if this is cancelled.
        await asyncio.shield(self._opening)

    async def _attach(self, engine: sa.Engine) -> None:
        try:
            # On a thread: a million keys take many seconds.
            self._take(await asyncio.to_thread(self._connect, engine))
        finally:
            self._opening = None

    def refresh(self) -> None:
        """Look for new keys now."""
        if self._database is None:
            self.look()
        else:
            self._database.writer.refresh()

    def look(self) -> None:
        """Open the database if its file has appeared, or if too much waits for one."""
        if self._database is not None or self._opening is not None:
            return
        if has_database(self._folder) or self._full() or self._orphaned():
            self._opening = asyncio.create_task(self._open())

    def _full(self) -> bool:
        pending = len(self._pending.pending)
        return pending >= _MOST_PENDING or self._journal.size_bytes > SEGMENT_BYTES

    def _orphaned(self) -> bool:
        """Whether a neighbour was killed, looked for now and then: its journal is long."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._orphans_at_s:
            return False
        self._orphans_at_s = now_s + _ORPHANS_S
        return orphaned_bytes(journals_in(self._folder)) >= SEGMENT_BYTES

    async def watch(self) -> None:
        """Look again and again, until a database is open."""
        while self._database is None:
            await asyncio.sleep(WATCH_S)
            self.look()

    async def aclose(self) -> None:
        """Everything is in the database at the end, or in the journal."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._database is not None:
            # The loop goes on meanwhile: it is told what was written.
            await asyncio.to_thread(self._database.close)

    async def _open(self) -> None:
        try:
            # On a thread: the imports alone take half a second.
            self._take(await asyncio.to_thread(self._connect, None))
        except Exception as error:  # noqa: BLE001 - requests go on, and the next look tries again
            failure = str(error) if isinstance(error, ConfigError) else in_one_line(error)
            if failure != self._failure:
                _log.error("the ledger's database cannot be opened: %s", failure)
            self._failure = failure
        finally:
            self._opening = None

    def _take(self, opened: DatabaseLedger) -> None:
        self._database = opened
        self.access.writer = opened.writer


@asynccontextmanager
async def open_ledger(
    engine: sa.Engine | None, options: LedgerOptions, identity: ProcessIdentity, *, clocks: Clocks,
    entropy: Callable[[int], bytes],
) -> AsyncIterator[OpenLedger]:  # fmt: skip
    """A running ledger. ``engine`` is the database; None begins without one.

    At the end everything is in the database, or in the journal.

    Raises ``ConfigError``.
    """
    loop = asyncio.get_running_loop()
    with ExitStack() as opened:
        if engine is not None:
            opened.callback(engine.dispose)
        journal = Journal(options.journals, identity.id, limit_bytes=options.journal_bytes)
        try:
            opened.enter_context(journal)
        except OSError as error:
            raise ConfigError(
                f"{options.journals}: no journal can be kept here: {error.strerror or error}"
            ) from error
        limiter, limiter_thread = _limiter(options, clocks)
        if limiter_thread is not None:
            opened.callback(_end, limiter_thread)
            limiter_thread.submit(limiter.answers).add_done_callback(_say_if_away)
        pending = PendingRecords()
        access = AccessLedger(
            pending,
            journal,
            limiter,
            policy=options.policy,
            clocks=clocks,
            limiter_thread=limiter_thread,
        )
        opened.callback(access.close)

        def written(ids: Sequence[str]) -> None:
            loop.call_soon_threadsafe(journal.written, ids)

        def connect(database: sa.Engine | None) -> DatabaseLedger:
            # Imported when a database is opened: a server without keys may never open one.
            from afterword.ledger.database import open_database  # noqa: PLC0415
            from afterword.ledger.database_ledger import open_database_ledger  # noqa: PLC0415

            return open_database_ledger(
                database or open_database(options.folder, None),
                identity,
                options.journals,
                pending=pending.pending,
                clocks=clocks,
                entropy=entropy,
                on_written=written,
                presence=options.presence,
            )

        ledger = OpenLedger(access, journal, pending, options.folder, connect)
        upkeep = [asyncio.create_task(_keep_up(access, limiter, limiter_thread))]
        try:
            if engine is not None:
                await ledger.attach(engine)
            upkeep.append(asyncio.create_task(ledger.watch()))
            yield ledger
        finally:
            for task in upkeep:
                task.cancel()
            await asyncio.shield(ledger.aclose())


def _limiter(options: LedgerOptions, clocks: Clocks) -> tuple[RateLimiter, Executor | None]:
    if options.redis is None:
        return MemoryRateLimiter(clocks.monotonic), None
    return redis_limiter(options.redis), ThreadPoolExecutor(1, "afterword-rate-limiter")


def _say_if_away(asked: Future[bool]) -> None:
    if asked.cancelled() or (asked.exception() is None and asked.result()):
        return
    _log.warning(
        "redis cannot be reached: requests of keys with limits per minute or at once get 503 until "
        "it can"
    )


def _end(limiter_thread: Executor) -> None:
    """Wait for what the limiter was asked, but not for a silent one: each call takes seconds."""
    try:
        limiter_thread.submit(int).result(_END_S)
    except TimeoutError:
        _log.warning("redis does not answer: limits that are not settled free themselves")
    limiter_thread.shutdown(cancel_futures=True)


def redis_limiter(url: str) -> RedisRateLimiter:
    """A rate limiter over Redis. Raises ``ConfigError`` for a wrong URL or a missing driver."""
    try:
        # The driver is an extra, and takes time to import.
        from afterword.ledger.redis import RedisRateLimiter, connect  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError("redis: its driver is missing: pip install 'afterword[redis]'") from error
    return RedisRateLimiter(connect(url))


async def _keep_up(
    access: AccessLedger, limiter: RateLimiter, limiter_thread: Executor | None
) -> None:
    """Sync the journal to the disk every second; renew leases in Redis now and then."""
    rounds = 0
    while True:
        await asyncio.sleep(_SYNC_S)
        try:
            await asyncio.wrap_future(access.sync())
        except OSError as error:
            _log.error("the journal cannot be brought to the disk: %s", in_one_line(error))
        rounds += 1
        if limiter_thread is not None and rounds % _RENEW_ROUNDS == 0:
            limiter_thread.submit(limiter.renew).add_done_callback(_say_if_not_renewed)


def _say_if_not_renewed(renewed: Future[None]) -> None:
    error = None if renewed.cancelled() else renewed.exception()
    if error is not None:
        _log.warning("leases in redis are not renewed, and end in a minute: %s", in_one_line(error))
