"""A ledger, opened: database, journal, thread and limits, closed in the right order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from afterword.core.errors import ConfigError
from afterword.core.faults import in_one_line
from afterword.ledger.access import AccessLedger, Clocks, Policy
from afterword.ledger.admin_queries import LedgerQueries
from afterword.ledger.database import connect, parse_url, prepare, sqlite_url
from afterword.ledger.journal import Journal
from afterword.ledger.rate_limits import MemoryRateLimiter, RateLimiter
from afterword.ledger.writer import LedgerWriter, LedgerWriterThread, ProcessIdentity

if TYPE_CHECKING:
    from afterword.ledger.redis import RedisRateLimiter

_log = logging.getLogger(__name__)

_SYNC_S = 1.0
_RENEW_ROUNDS = 20


class LedgerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where a ledger is kept; ``database`` None is a file in ``folder``, ``redis`` None memory."""

    folder: Path
    database: str | None = None
    redis: str | None = None
    journal_bytes: int = 256 << 20
    policy: Policy = Policy()


class OpenLedger(msgspec.Struct, frozen=True):
    """What an open ledger offers: to requests, to operators, and to signals."""

    access: AccessLedger
    queries: LedgerQueries
    writer: LedgerWriter


def open_database(folder: Path, database: str | None) -> sa.Engine:
    """The ledger's database, its tables made where there are none. Raises ``ConfigError``."""
    if database is None:
        make_folder(folder)
        url = sqlite_url(folder / "ledger.db")
    else:
        url = parse_url(database)
    engine = connect(url)
    prepare(engine)
    return engine


def make_folder(folder: Path) -> None:
    """A folder that is nobody else's business. Raises ``ConfigError``."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: the ledger cannot be kept here (--data-dir): {error.strerror}"
        ) from error


@asynccontextmanager
async def open_ledger(
    engine: sa.Engine, options: LedgerOptions, identity: ProcessIdentity, *, clocks: Clocks,
    entropy: Callable[[int], bytes],
) -> AsyncIterator[OpenLedger]:  # fmt: skip
    """A ledger at work; at the end everything is in the database, or in the journal.

    Raises ``ConfigError``.
    """
    loop = asyncio.get_running_loop()
    journals = options.folder / "journal"
    with ExitStack() as opened:
        opened.callback(engine.dispose)
        try:
            journal = opened.enter_context(
                Journal(journals, identity.id, limit_bytes=options.journal_bytes)
            )
        except OSError as error:
            raise ConfigError(f"{journals}: no journal can be kept here: {error}") from error

        def written(ids: Sequence[str]) -> None:
            loop.call_soon_threadsafe(journal.written, ids)

        writer = LedgerWriter(
            engine, identity, journals, clock=clocks.monotonic, on_written=written
        )
        writer.flush()
        if not writer.reachable:
            raise ConfigError("the ledger's database cannot be used")
        limiter, limiter_thread = _limiter(options, clocks)
        if limiter_thread is not None:
            opened.callback(limiter_thread.shutdown)
        ledger = AccessLedger(
            writer,
            journal,
            limiter,
            policy=options.policy,
            clocks=clocks,
            limiter_thread=limiter_thread,
        )
        opened.callback(ledger.close)
        queries = LedgerQueries(engine, clock=clocks.unix, entropy=entropy)
        thread = LedgerWriterThread(writer)
        thread.start()
        upkeep = asyncio.create_task(_keep_up(ledger, limiter, limiter_thread))
        try:
            yield OpenLedger(ledger, queries, writer)
        finally:
            upkeep.cancel()
            # The loop goes on meanwhile: it is told what was written.
            await asyncio.shield(asyncio.to_thread(thread.close))


def _limiter(options: LedgerOptions, clocks: Clocks) -> tuple[RateLimiter, Executor | None]:
    if options.redis is None:
        return MemoryRateLimiter(clocks.monotonic), None
    return redis_limiter(options.redis), ThreadPoolExecutor(1, "afterword-rate-limiter")


def redis_limiter(url: str) -> RedisRateLimiter:
    """A rate limiter over Redis. Raises ``ConfigError`` for a wrong URL or a missing driver."""
    try:
        # The driver is an extra, and takes time to import.
        from afterword.ledger.redis import open_rate_limiter  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError("redis: its driver is missing: pip install 'afterword[redis]'") from error
    return open_rate_limiter(url)


async def _keep_up(
    ledger: AccessLedger, limiter: RateLimiter, limiter_thread: Executor | None
) -> None:
    """Every second the journal goes to the disk; now and then Redis hears of what runs."""
    rounds = 0
    while True:
        await asyncio.sleep(_SYNC_S)
        try:
            await asyncio.wrap_future(ledger.sync())
        except OSError as error:
            _log.error("the journal cannot be brought to the disk: %s", in_one_line(error))
        rounds += 1
        if limiter_thread is not None and rounds % _RENEW_ROUNDS == 0:
            limiter_thread.submit(limiter.renew)
