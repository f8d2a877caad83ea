"""The batching engine: connects the worker's thread with generations on the event loop."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence as SequenceOf
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import msgspec

from afterword.core.errors import (
    ApiError,
    EngineFailed,
    EngineOverloaded,
    EngineUnavailable,
    InvalidRequest,
)
from afterword.core.job import Constraint, Event, Job, OutputGrammar
from afterword.core.mailbox import Mailbox, MailboxReader
from afterword.core.protocols import EngineCard, EngineStats, Tokenizer
from afterword.engine.batching.admission import (
    nothing_to_draw,
    refuse_too_long,
    refuse_undrawable,
)
from afterword.engine.batching.runner import ModelRunner
from afterword.engine.batching.worker import Abort, Add, Report, Worker
from afterword.engine.row_query import GrammarError, NoNumbersError, NothingToDrawError

if TYPE_CHECKING:
    from afterword.engine.grammar import Grammars

_RETRY_AFTER_S = 1


class _OpenRequest(NamedTuple):
    """A request whose events still come. Its jobs share what its errors name; one stands here."""

    mailbox: Mailbox
    job: Job


class BatchingEngine:
    """An ``Engine`` over a ``ModelRunner``. Call all methods on the event loop's thread.

    At most ``max_waiting`` requests may wait for their first event; one more is refused. Scores of
    prompts are kept for later prompts in at most ``score_budget_bytes``, checkpoints in at most
    ``checkpoint_budget_bytes``.
    """

    def __init__(  # noqa: PLR0913 - the limits of an engine, each by its name
        self,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        card: EngineCard,
        *,
        max_waiting: int = 256,
        target_gap_ms: int = 200,
        score_budget_bytes: int = 64 * 2**20,
        checkpoint_budget_bytes: int = 64 * 2**20,
        drafts: bool = True,
        check: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._card = card
        self._max_waiting = max_waiting
        self._slots = runner.sequences
        self._context_tokens = runner.context_tokens
        self._cells_total = runner.slots * runner.context_tokens
        if runner.blocks:
            self._cells_total = runner.blocks * runner.block_tokens
        self._open: dict[int, _OpenRequest] = {}
        self._unstarted: set[int] = set()
        self._keys = itertools.count()
        self._dead: Exception | None = None
        self._closed = False
        self._grammars: Grammars | None = None
        self._grammars_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker = Worker(
            runner,
            tokenizer.end_ids,
            target_gap_s=target_gap_ms / 1000,
            score_budget_bytes=score_budget_bytes,
            checkpoint_budget_bytes=checkpoint_budget_bytes,
            drafts=drafts,
            deliver=self._deliver,
            check=check,
        )
        self._worker.start()

    @property
    def card(self) -> EngineCard:
        """The fixed description of the engine."""
        return self._card

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        return self._tokenizer

    def open(
        self, jobs: SequenceOf[Job], *, later: SequenceOf[Job] = (), admitted: bool = False
    ) -> BatchGeneration:
        """Admit the jobs of one request; see ``core.protocols.Engine``."""
        if self._closed or self._dead is not None:
            raise EngineUnavailable("The engine is not available.")
        if not admitted and len(self._unstarted) >= self._max_waiting:
            raise EngineOverloaded(
                "The engine is currently overloaded, please try again later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        known = (*jobs, *later)
        refuse_too_long(known, self._context_tokens)
        try:
            refuse_undrawable(known, len(self._tokenizer.pieces), self._tokenizer.end_ids)
        except GrammarError as error:
            raise _as_api_error(error, jobs[0]) from None
        self._loop = asyncio.get_running_loop()
        key = next(self._keys)
        mailbox = Mailbox()
        self._open[key] = _OpenRequest(mailbox, jobs[0])
        self._unstarted.add(key)
        self._worker.send(Add(key, tuple(jobs)))
        return BatchGeneration(self, key, mailbox)

    def constraint(self, grammar: OutputGrammar) -> Constraint:
        """Compile a grammar; see ``core.protocols.Engine``."""
        with self._grammars_lock:
            if self._grammars is None:
                # The library is imported, and its tables are made, for the first grammar.
                from afterword.engine.grammar import Grammars  # noqa: PLC0415

                self._grammars = Grammars(self._tokenizer)
        return self._grammars.constraint(grammar)

    def healthy(self) -> bool:
        """Whether the worker is alive and not closed."""
        return self._dead is None and not self._closed

    def stats(self) -> EngineStats:
        """Returns the figures after the last step."""
        gauges = self._worker.gauges
        counters = msgspec.structs.asdict(gauges.counters)
        counters["batch_sizes"] = tuple(gauges.counters.batch_sizes)
        since_s = gauges.waiting_since_s
        return EngineStats(
            running_sequences=gauges.running,
            waiting_sequences=gauges.waiting,
            slots=self._slots,
            active_slots=gauges.active_slots,
            resident_slots=gauges.resident_slots,
            cells_used=gauges.cells_used,
            cells_total=self._cells_total,
            score_bytes=gauges.score_bytes,
            checkpoint_bytes=gauges.checkpoint_bytes,
            longest_wait_s=0.0 if since_s is None else time.perf_counter() - since_s,
            engine_cpu_s=gauges.cpu_s,
            **counters,
        )

    async def aclose(self) -> None:
        """End running requests with an error, stop the thread, free the runner. Idempotent."""
        self._closed = True
        try:
            await asyncio.to_thread(self._worker.close)
        finally:
            # Readers wait for an end, also if nobody waits for that of a long step.
            self._close_all(EngineUnavailable("The server is shutting down."))

    def abort(self, key: int, job: int, seq: int) -> None:
        """Stop one sequence at the next step."""
        if key in self._open:
            self._worker.send(Abort(key, (job, seq)))

    def leave(self, key: int) -> None:
        """Abort the sequences of a request at the next step, because its reader is gone."""
        self._unstarted.discard(key)
        if self._open.pop(key, None) is not None:
            self._worker.send(Abort(key, None))

    def _deliver(self, report: Report) -> None:
        """Pass a report to the event loop, one hop a step. Runs on the worker's thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._receive, report)
        elif report.dead is not None:
            self._dead = report.dead

    def _receive(self, report: Report) -> None:
        if report.dead is not None:
            self._dead = report.dead
            self._close_all(EngineUnavailable("The engine has failed and is not available."))
            return
        by_key: dict[int, list[Event]] = {}
        for key, event in report.events:
            by_key.setdefault(key, []).append(event)
        for key, events in by_key.items():
            self._unstarted.discard(key)
            request = self._open.get(key)
            if request is not None:
                request.mailbox.put(events)
        for key in report.ended:
            self._finish(key, None)
        for key, error in report.failed:
            request = self._open.get(key)
            if request is not None:
                self._finish(key, _as_api_error(error, request.job))

    def _finish(self, key: int, error: ApiError | None) -> None:
        self._unstarted.discard(key)
        request = self._open.pop(key, None)
        if request is not None:
            request.mailbox.close(error)

    def _close_all(self, error: ApiError) -> None:
        for key in list(self._open):
            self._finish(key, error)


class BatchGeneration(MailboxReader):
    """The running jobs of one request; see ``core.protocols.Generation``."""

    def __init__(self, engine: BatchingEngine, key: int, mailbox: Mailbox) -> None:
        super().__init__(mailbox)
        self._engine = engine
        self._key = key

    async def __aenter__(self) -> Self:
        """Do nothing, because ``open`` has admitted the jobs."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Abort what still runs."""
        self._engine.leave(self._key)

    def abort(self, job: int, seq: int) -> None:
        """Stop one sibling at the next step."""
        self._engine.abort(self._key, job, seq)


def _as_api_error(error: Exception, job: Job) -> ApiError:
    """Returns what the client of a failed request sees; ``job`` is one of its jobs."""
    if isinstance(error, NothingToDrawError):
        return nothing_to_draw(job)
    if isinstance(error, GrammarError):
        # A grammar that costs more than its bounds. The request would fail again.
        return InvalidRequest(
            f"The grammar could not be followed any further: {error}",
            param=None if job.constraint is None else job.constraint.field,
        )
    if isinstance(error, NoNumbersError):
        return EngineFailed(
            "The model computed no numbers for this request: its weights, or what they give here, "
            "are not finite."
        )
    return EngineFailed("The engine failed to compute a step of this request.")
