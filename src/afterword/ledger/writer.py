"""The thread that writes to the database, in batches, so that requests do not wait for it.

A flush reads the keys, decides claims on budgets and writes ended requests. Before it refuses a
claim, it writes what has ended. Now and then it takes over from dead processes. While the database
is away, claims fail at once and everything else waits. A record that the database refuses is set
aside, and a step that fails for another reason holds up no other.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from afterword.core.account import UsageRecord
from afterword.core.errors import ConfigError, LedgerUnavailable
from afterword.core.faults import in_one_line
from afterword.ledger import budgets
from afterword.ledger.alive import alive_folder, lives, remove_dead
from afterword.ledger.database import file_of, is_away, prepare, reason
from afterword.ledger.durable import refusal, write_each
from afterword.ledger.key_reader import KeyReader
from afterword.ledger.keyring import Keyring
from afterword.ledger.orphans import reap_journals
from afterword.ledger.process import ProcessIdentity
from afterword.ledger.record_writer import Claim
from afterword.ledger.set_aside import SetAside
from afterword.ledger.silence import Silence
from afterword.ledger.sqlite_file import Identity
from afterword.ledger.tables import processes, reservations

_log = logging.getLogger(__name__)

FLUSH_S = 0.4
"""The longest pause between flushes. A revoked key has to stop within a second."""
_HEARTBEAT_S = 5.0
_RETRY_S = 0.5
_STUCK_S = 5.0
_MOST_RECORDS = 500


_AskedClaim: TypeAlias = tuple[Claim, Future[int | None]]


class LedgerWriter:
    """A ``RecordWriter`` on a database. Methods are safe from any thread but ``flush``.

    ``clock`` gives seconds that never go back. ``on_written`` gets the ids of requests that are in
    the database, on the thread that flushes. ``pending`` is what waited before; others may still
    append to it.
    """

    def __init__(
        self,
        engine: sa.Engine,
        identity: ProcessIdentity,
        journals: Path,
        *,
        clock: Callable[[], float],
        on_written: Callable[[Sequence[str]], None],
        pending: deque[UsageRecord] | None = None,
    ) -> None:
        self._engine = engine
        self._identity = identity
        self._journals = journals
        self._alive = alive_folder(engine, journals)
        self._aside = SetAside(journals)
        self._clock = clock
        self._on_written = on_written
        self._ended: deque[UsageRecord] = deque() if pending is None else pending
        self._released: deque[str] = deque()
        self._claims: deque[_AskedClaim] = deque()
        self._refreshes: deque[Future[None]] = deque()
        self._held: dict[str, Claim] = {}
        self._silence = Silence(clock())
        self._faults: dict[str, str] = {}
        self._away = False
        self._retry_at_s = self._heartbeat_at_s = self._look_at_s = self._write_at_s = 0.0
        self._connection: sa.Connection | None = None
        self._file: Identity | None = None
        self._keys = KeyReader()
        self._heard_s = clock()
        self.written = 0
        self.work = threading.Event()

    @property
    def keyring(self) -> Keyring:
        """See ``RecordWriter``."""
        return self._keys.keyring

    @property
    def keys_are_read(self) -> bool:
        """Whether the last flush knew all keys."""
        return self._keys.whole

    @property
    def pending_writes(self) -> int:
        """See ``RecordWriter``."""
        return len(self._ended)

    @property
    def reachable(self) -> bool:
        """Whether the database answered last time, and not long ago."""
        return not self._away and self._clock() < self._heard_s + _STUCK_S

    def claim(self, claim: Claim) -> Future[int | None]:
        """See ``RecordWriter``."""
        future: Future[int | None] = Future()
        self._claims.append((claim, future))
        self.work.set()
        return future

    def ended(self, record: UsageRecord) -> None:
        """See ``RecordWriter``; the next flush writes it."""
        self._ended.append(record)

    def released(self, request_id: str) -> None:
        """See ``RecordWriter``."""
        self._released.append(request_id)
        self.work.set()

    def refresh(self) -> Future[None]:
        """Look at the keys now. The future is done when all of them are known."""
        future: Future[None] = Future()
        self._refreshes.append(future)
        self.work.set()
        return future

    def flush(self) -> None:
        """Do everything that is due now."""
        now_s = self._clock()
        refreshes = [self._refreshes.popleft() for _ in range(len(self._refreshes))]
        if refreshes:
            self._look_at_s = now_s
        if self._away and now_s < self._retry_at_s:
            self._fail_claims()
        else:
            self._work(now_s)
        if not (self._away or self._keys.whole):
            self._refreshes.extendleft(reversed(refreshes))
            self.work.set()
            return
        for future in refreshes:
            if future.set_running_or_notify_cancel():
                future.set_result(None)

    def _work(self, now_s: float) -> None:
        try:
            # First, so that a process that was taken for dead reserves again what it holds.
            if now_s >= self._heartbeat_at_s:
                self._heartbeat()
            # Whatever else fails, a revoked key ends.
            if now_s >= self._look_at_s:
                with self._transaction(reads=True) as connection:
                    self._keys.look(connection)
                self._look_at_s = now_s + FLUSH_S if self._keys.whole else 0.0
            # Clients wait for claims. Ended requests can wait for the next flush.
            if not self._decide() or now_s >= self._write_at_s:
                self._write_if_possible()
                self._write_at_s = now_s + FLUSH_S
            if now_s >= self._heartbeat_at_s:
                self._attempt("dead processes are not taken over", partial(self._reap, now_s))
                self._heartbeat_at_s = now_s + _HEARTBEAT_S
        except SQLAlchemyError as error:
            self._lost(reason(error))
            return
        except ConfigError as error:
            self._lost(str(error))
            return
        except Exception as error:  # noqa: BLE001 - the thread goes on, and tries again
            self._lost(in_one_line(error))
            return
        if self._away:
            _log.warning("the database is back; %d requests wait for it", len(self._ended))
        self._away = False
        self._heard_s = self._clock()

    def _attempt(self, what: str, step: Callable[[], None]) -> None:
        """Take a step that may fail alone. Raises if the database is away."""
        try:
            step()
        except Exception as error:
            if is_away(error):
                raise
            fault = reason(error) if isinstance(error, SQLAlchemyError) else in_one_line(error)
            if isinstance(error, OSError) and error.strerror:
                fault = error.strerror
            if self._faults.get(what) != fault:
                _log.exception("%s: %s", what, fault, exc_info=False)
            self._faults[what] = fault
        else:
            self._faults.pop(what, None)

    def _lost(self, why: str) -> None:
        if not self._away:
            _log.error("the database is away: %s", why)
        self._away = True
        self._retry_at_s = self._clock() + _RETRY_S
        self._fail_claims()

    def sign_off(self) -> None:
        """Flush for the last time and remove this process from the database, if it answers."""
        self._retry_at_s = 0.0
        self.flush()
        try:
            with self._transaction() as connection:
                budgets.give_back(connection, self._identity.id)
        except SQLAlchemyError as error:
            _log.warning("the process stays in the database: %s", reason(error))
        if self._connection is not None:
            self._connection.close()

    @contextmanager
    def _transaction(self, *, reads: bool = False) -> Iterator[sa.Connection]:
        """A transaction on this thread's connection, which stays open because that is faster.

        One that only ``reads`` waits for no writer.
        """
        if self._connection is None:
            self._connection = self._connect()
        try:
            self._connection.execution_options(reads=reads)
            with self._connection.begin():
                yield self._connection
        except BaseException:
            connection, self._connection = self._connection, None
            connection.invalidate()
            connection.close()
            raise

    def _connect(self) -> sa.Connection:
        """Returns a new connection. On another file than before, this process begins anew."""
        connection = self._engine.connect()
        try:
            file = file_of(connection)
            if self._file not in {None, file}:
                prepare(self._engine)
                with connection.begin():
                    self._move_in(connection)
            self._file = file
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        return connection

    def _write_if_possible(self) -> None:
        self._attempt("ended requests are not written", self._write)

    def _write(self) -> None:
        while self._ended or self._released:
            records = [self._ended[i] for i in range(min(len(self._ended), _MOST_RECORDS))]
            released = list(self._released)
            held = [one.id for one in records if one.id in self._held]
            write_each(self._transaction, records, self._aside, [*held, *released])
            for _ in records:
                self._ended.popleft()
            for _ in released:
                self._released.popleft()
            ids = [record.id for record in records]
            for request_id in (*ids, *released):
                self._held.pop(request_id, None)
            self.written += len(ids)
            self._on_written(ids)

    def _decide(self) -> bool:
        """Answer the waiting claims. Returns whether there were any."""
        waiting = [self._claims.popleft() for _ in range(len(self._claims))]
        asked = [(c, future) for c, future in waiting if future.set_running_or_notify_cancel()]
        if not asked:
            return False
        asked.sort(key=lambda pair: (pair[0].key_id, pair[0].period))
        try:
            self._answer(asked)
        except Exception as error:
            if refusal(error) is None:
                self._fail(asked)
                raise
            # One of them is nothing that the database takes. The others do not fail with it.
            self._decide_singly(asked)
        return True

    def _decide_singly(self, asked: Sequence[_AskedClaim]) -> None:
        for at, one in enumerate(asked):
            try:
                self._answer([one])
            except Exception as error:
                why = refusal(error)
                self._fail(asked[at:] if why is None else [one])
                if why is None:
                    raise
                _log.error("%s: its claim cannot be decided: %s", one[0].id, why)

    def _answer(self, asked: Sequence[_AskedClaim]) -> None:
        left = self._claim([wanted for wanted, _ in asked])
        if any(tokens is not None for tokens in left) and (self._ended or self._released):
            # Requests that ended meanwhile may give back enough.
            self._write_if_possible()
            again = [c for (c, _), tokens in zip(asked, left, strict=True) if tokens is not None]
            answers = iter(self._claim(again))
            left = [None if tokens is None else next(answers) for tokens in left]
        for (wanted, future), tokens in zip(asked, left, strict=True):
            if tokens is None:
                self._held[wanted.id] = wanted
            future.set_result(tokens)

    def _fail(self, asked: Sequence[_AskedClaim]) -> None:
        # The database may have committed before the connection broke.
        self._released.extend(wanted.id for wanted, _ in asked)
        for _, future in asked:
            future.set_exception(_unavailable())

    def _claim(self, wanted: Sequence[Claim]) -> list[int | None]:
        me = self._identity.id
        with self._transaction() as connection:
            # Others may have taken this process for dead a moment ago, and its reservations away.
            if not budgets.registered(connection, me):
                self._return(connection)
            return [budgets.claim(connection, one, me) for one in wanted]

    def _fail_claims(self) -> None:
        while self._claims:
            _, future = self._claims.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(_unavailable())

    def _heartbeat(self) -> None:
        """Show that this process lives. If others removed it, reserve again what it holds."""
        with self._transaction() as connection:
            alive = connection.execute(
                sa.update(processes)
                .where(processes.c.id == self._identity.id)
                .values(beats=processes.c.beats + 1)
            )
            if not alive.rowcount:
                self._return(connection)

    def _return(self, connection: sa.Connection) -> None:
        """Enter this process again. What it holds counts again, even if others have it now."""
        held = self._register(connection)
        if held:
            _log.warning(
                "this process stood still and was taken for dead: its %d reservations of %d tokens "
                "went to others and count again, so a budget may be overdrawn by as much",
                len(held), sum(claim.tokens for claim in held),
            )  # fmt: skip

    def _move_in(self, connection: sa.Connection) -> None:
        """Enter this process into another database, which may know it from an earlier time."""
        budgets.give_back(connection, self._identity.id)
        held = self._register(connection)
        _log.warning(
            "the database is another file than before: what it does not know is lost; the %d "
            "reservations of running requests count in it",
            len(held),
        )

    def _register(self, connection: sa.Connection) -> Sequence[Claim]:
        """Enter this process and reserve what it holds. Returns that."""
        row = {**msgspec.structs.asdict(self._identity), "beats": 1}
        connection.execute(sa.insert(processes), row)
        held = list(self._held.values())
        if held:
            budgets.restore(connection, held, self._identity.id)
        return held

    def _reap(self, now_s: float) -> None:
        """Take over from dead processes: by their journals and locks, else by their silence."""
        remove_dead(self._alive)
        for reaped in reap_journals(self._transaction, self._journals):
            level = logging.WARNING if reaped.lost or reaped.reservations else logging.INFO
            _log.log(
                level,
                "a process left a journal: %d requests recorded, %d reservations came back",
                reaped.records,
                reaped.reservations,
            )
        for process_id in self._silent(now_s):
            if lives(self._alive, process_id) or lives(self._journals, process_id):
                # It stands still. What it holds is still its own.
                continue
            with self._transaction() as connection:
                given_back = budgets.give_back(connection, process_id)
            _log.warning("a process died; %d reservations came back", given_back)

    def _silent(self, now_s: float) -> list[str]:
        """Returns the processes that have been silent for long while this one watched."""
        unregistered = (
            sa.select(reservations.c.process_id, sa.literal(0))
            .where(reservations.c.process_id.not_in(sa.select(processes.c.id)))
            .distinct()
        )
        with self._transaction() as connection:
            rows = connection.execute(
                sa.select(processes.c.id, processes.c.beats).union_all(unregistered)
            ).all()
        silent = self._silence.look(((process_id, beats) for process_id, beats in rows), now_s)
        return [process_id for process_id in silent if process_id != self._identity.id]


class LedgerWriterThread:
    """The thread that flushes a writer until ``close``."""

    def __init__(self, writer: LedgerWriter) -> None:
        self._writer = writer
        self._closing = False
        self._thread = threading.Thread(
            target=self._run, name="afterword-ledger-writer", daemon=True
        )

    def start(self) -> None:
        """Start flushing."""
        self._thread.start()

    def close(self) -> None:
        """Write what is pending, sign off, and wait until that is done."""
        self._closing = True
        self._writer.work.set()
        self._thread.join()

    def _run(self) -> None:
        work = self._writer.work
        while not self._closing:
            work.wait(FLUSH_S)
            work.clear()
            self._writer.flush()
        self._writer.sign_off()


def _unavailable() -> LedgerUnavailable:
    return LedgerUnavailable("Budgets cannot be looked up at the moment.", retry_after_s=1)
