"""The engine's thread. It owns the scheduler, the runner and all that they use.

Commands come in through a deque, reports go out once a step. Nothing else crosses.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import TypeAlias

import msgspec

from afterword.core.faults import in_one_line
from afterword.core.job import Event, Job
from afterword.engine.batching.budget import ChunkBudget
from afterword.engine.batching.counters import Counters
from afterword.engine.batching.drafts import StepCost
from afterword.engine.batching.outcome import evaluate
from afterword.engine.batching.runner import DecodeError, FatalDecodeError, ModelRunner
from afterword.engine.batching.scheduler import Scheduler
from afterword.engine.batching.step import Step

log = logging.getLogger(__name__)


class Add(msgspec.Struct, frozen=True):
    """Admit a request."""

    key: int
    jobs: SequenceOf[Job]


class Abort(msgspec.Struct, frozen=True):
    """End one ``sequence`` (job, sibling), or the whole request if it is None."""

    key: int
    sequence: tuple[int, int] | None


Command: TypeAlias = Add | Abort


class Report(msgspec.Struct, frozen=True):
    """Results of one step: events, ended requests, and failed requests with their errors.

    Requests are named by their keys. ``dead`` is set if the worker has stopped for good; no report
    follows.
    """

    events: list[tuple[int, Event]]
    ended: list[int]
    failed: list[tuple[int, Exception]]
    dead: Exception | None = None


class Gauges(msgspec.Struct, frozen=True):
    """The scheduler's figures after a step; ``waiting_since_s`` is a ``time.perf_counter`` value.

    ``counters`` is a copy. ``cpu_s`` is the processor time of the worker's thread.
    """

    running: int
    waiting: int
    cells_used: int
    active_slots: int
    resident_slots: int
    score_bytes: int
    checkpoint_bytes: int
    waiting_since_s: float | None
    counters: Counters
    cpu_s: float


class Worker:
    """Computes steps on its own thread, and calls ``deliver(report)`` there if there is news.

    ``drafts`` allows speculative decoding (see the module ``drafts``). ``check`` verifies the
    scheduler's invariants after each step.
    """

    def __init__(  # noqa: PLR0913 - what decides how it works, each by its name
        self,
        runner: ModelRunner,
        end_ids: frozenset[int],
        *,
        target_gap_s: float,
        score_budget_bytes: int,
        checkpoint_budget_bytes: int,
        drafts: bool,
        deliver: Callable[[Report], None],
        check: bool = False,
    ) -> None:
        self._runner = runner
        self._scheduler = Scheduler(
            runner,
            end_ids,
            score_budget_bytes=score_budget_bytes,
            checkpoint_budget_bytes=checkpoint_budget_bytes,
        )
        # If rows may depend on how a prompt is cut into chunks, times must not decide the cuts.
        self._budget = ChunkBudget(
            most_tokens=runner.max_batch_tokens,
            target_gap_s=target_gap_s,
            timed=runner.sharing != "none",
        )
        self._cost = StepCost()
        self._drafts = drafts
        self._deliver = deliver
        self._check = check
        self._commands: deque[Command] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._open: set[int] = set()
        self._thread = threading.Thread(target=self._run, name="afterword-engine", daemon=True)
        self.gauges = self._measure()

    def start(self) -> None:
        """Start the thread. Call it once."""
        self._thread.start()

    def send(self, command: Command) -> None:
        """Queue a command for the next step. Safe from any thread."""
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def close(self) -> None:
        """Stop after the current step, free the runner, and wait until that is done. Idempotent."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._obey():
                self._step()
        except Exception as error:  # noqa: BLE001 - the engine ends on any error
            log.error("the engine is dead: %s", in_one_line(error))  # noqa: TRY400 - without paths
            self._deliver(Report([], [], [], dead=error))
        finally:
            # Nothing runs or waits any more, and metrics should not say so for ever.
            self.gauges = msgspec.structs.replace(
                self.gauges, running=0, waiting=0, active_slots=0, waiting_since_s=None
            )
            self._runner.close()

    def _obey(self) -> bool:
        """Carry out commands, after waiting for one if idle. Returns False when closing."""
        scheduler = self._scheduler
        with self._wake:
            while scheduler.idle and not self._commands and not self._closing:
                self.gauges = self._measure()
                self._wake.wait()
            if self._closing:
                return False
        while self._commands:
            match self._commands.popleft():
                case Add(key, jobs):
                    self._open.add(key)
                    scheduler.add(key, jobs, now_s=time.perf_counter())
                case Abort(key, None):
                    self._open.discard(key)
                    scheduler.abort_request(key)
                case Abort(key, (job, sibling)):
                    scheduler.abort(key, job, sibling)
        return True

    def _step(self) -> None:
        scheduler = self._scheduler
        budget = self._budget.tokens(decoding=scheduler.decoding)
        row_share = self._cost.row_share if self._drafts else None
        step = scheduler.schedule(budget, row_share=row_share, now_s=time.perf_counter())
        failed: list[tuple[int, Exception]] = []
        if step is not None:
            try:
                self._compute(step)
            except FatalDecodeError:
                raise
            except DecodeError as error:
                log.warning("a step failed: %s", error)
                failed = [(key, error) for key in scheduler.fail(step)]
        failed += scheduler.take_failures()
        if self._check:
            scheduler.check()
        self.gauges = self._measure()
        for key, _ in failed:
            self._open.discard(key)
        events = scheduler.take_events()
        touched = dict.fromkeys(key for key, _ in events)
        # A request whose last sequence was aborted ends without an event.
        ended = [key for key in self._open if scheduler.ended(key)] if self._open else []
        self._open.difference_update(ended)
        if touched or ended or failed:
            self._deliver(Report(events, ended, failed))

    def _compute(self, step: Step) -> None:
        started = time.perf_counter()
        self._runner.apply(step.instructions)
        rows = self._runner.decode(step.batch)
        took_s = time.perf_counter() - started
        computed = len(step.batch.tokens)
        decoded = sum(span.tokens for span in step.spans if span.decodes)
        self._budget.observe(
            decoded_rows=decoded, prefilled_tokens=computed - decoded, took_s=took_s
        )
        outcomes = evaluate(step, rows, self._runner.sampler)
        if decoded == computed:
            drafted = sum(span.drafted for span in step.spans)
            drawn = sum(len(outcome.drawn) for outcome in outcomes)
            self._cost.observe(rows=computed, drafted=drafted, drawn=drawn, took_s=took_s)
        self._scheduler.update(step, outcomes)

    def _measure(self) -> Gauges:
        scheduler = self._scheduler
        used, active, resident = scheduler.cells()
        return Gauges(
            running=scheduler.running,
            waiting=scheduler.waiting,
            cells_used=used,
            active_slots=active,
            resident_slots=resident,
            score_bytes=scheduler.score_bytes,
            checkpoint_bytes=scheduler.checkpoint_bytes,
            waiting_since_s=scheduler.waiting_since_s,
            counters=scheduler.counters.copy(),
            cpu_s=time.thread_time() if threading.current_thread() is self._thread else 0.0,
        )
