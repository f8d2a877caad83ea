"""One request of a client at its upstreams: attempts, one retry, and their events, merged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import msgspec

from afterword.core.errors import EngineUnavailable
from afterword.core.job import Counted, Ended, Event, Job, Prefilled, Sampled
from afterword.core.mailbox import Mailbox, MailboxReader
from afterword.gateway.dialects.dialect import AnyTokenizer
from afterword.gateway.failures import (
    ClientsFault,
    Overloaded,
    Refused,
    UpstreamFailure,
    error_of,
    nobody_left,
)
from afterword.gateway.pool.attempt import Attempt
from afterword.gateway.pool.attempt_limits import limits_of
from afterword.gateway.pool.pool import Pool
from afterword.gateway.pool.prefixes import block_keys
from afterword.gateway.pool.upstream import Load, Upstream
from afterword.gateway.transport.long_json import encoded

_MOST_TOGETHER = 64
"""The most requests to upstreams that one request of a client has in flight."""
_MOST_TRIES = 2
_LONG_TOKENS = 1 << 18
"""Of a prompt. A thread writes its request."""
_BIAS_TOKENS = 8
"""A bias takes as long to write as so many tokens."""


class Counts:
    """Tokens of all generations of an engine, for the metrics."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generated_tokens = 0


class RemoteGeneration(MailboxReader):
    """The running jobs of one request; see ``core.protocols.Generation``.

    ``leave`` is called once, when the generation has ended.
    """

    def __init__(
        self,
        pool: Pool,
        tokenizer: AnyTokenizer,
        jobs: Sequence[Job],
        *,
        counts: Counts,
        leave: Callable[[RemoteGeneration], None],
    ) -> None:
        super().__init__(Mailbox())
        self._pool = pool
        self._tokenizer = tokenizer
        self._jobs = jobs
        self._counts = counts
        self._leave = leave
        self._attempts: dict[tuple[int, int], Attempt] = {}
        self._unwanted: set[tuple[int, int]] = set()
        self._prefilled: set[int] = set()
        self._counted: set[int] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._turn = asyncio.Lock()
        self.begun = False

    @property
    def sequences(self) -> int:
        """The number of sequences of all jobs."""
        return sum(job.n for job in self._jobs)

    async def __aenter__(self) -> Self:
        """Send the requests. Returns when upstreams have accepted the first ones.

        Raises ``ApiError`` if an upstream refuses a request or no upstream can be reached.
        """
        loop = asyncio.get_running_loop()
        together = asyncio.Semaphore(_MOST_TOGETHER)
        groups = self._pool.dialect.groups
        units = [(i, job, seqs) for i, job in enumerate(self._jobs) for seqs in groups(job)]
        self._left = len(units)
        self._several = len(units) > 1
        self._untaken = {(i, seqs[0]) for i, _, seqs in units[:_MOST_TOGETHER]}
        self._admission = loop.create_future()
        self._tasks = [loop.create_task(self._run(*unit, together)) for unit in units]
        try:
            await self._admission
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Abort the requests that still run."""
        await self._stop()

    def abort(self, job: int, seq: int) -> None:
        """Stop one sibling. If others share its request, the request goes on without its tokens."""
        self._unwanted.add((job, seq))
        attempt = self._attempts.get((job, seq))
        if attempt is not None:
            attempt.close(seq)

    def end(self, error: Exception) -> None:
        """End every attempt; the reader gets ``error`` after the events that came before."""
        self._mailbox.close(error)
        for attempt in dict.fromkeys(self._attempts.values()):
            attempt.abort()

    async def _stop(self) -> None:
        # Connections close now, not when the cancelled tasks run next.
        for attempt in dict.fromkeys(self._attempts.values()):
            attempt.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._leave(self)

    async def _run(
        self, index: int, job: Job, seqs: Sequence[int], together: asyncio.Semaphore
    ) -> None:
        """Run one request for some siblings of a job, from its turn to its last event."""
        try:
            async with together:
                if self._several:
                    await self._others()
                await self._make(index, job, seqs)
        except Exception as error:  # noqa: BLE001 - raised to the reader
            if self._admission.done():
                self.end(error)
            else:
                self._admission.set_exception(error)
        else:
            self._taken(index, seqs)
            self._left -= 1
            if not self._left:
                self._mailbox.close()

    async def _others(self) -> None:
        """Let others run: to write a long prompt takes a while, and many requests may begin."""
        async with self._turn:
            await asyncio.sleep(0)

    def _taken(self, index: int, seqs: Sequence[int]) -> None:
        """Note that an upstream has accepted the request for some siblings."""
        self._untaken.discard((index, seqs[0]))
        if not self._untaken and not self._admission.done():
            self._admission.set_result(None)

    async def _make(self, index: int, job: Job, seqs: Sequence[int]) -> None:
        if not job.max_tokens and job.prompt_logprobs is None:
            ends: list[Event] = [Ended(index, seq, "length", 0) for seq in seqs]
            self._emit([Prefilled(index, job.prompt_tokens, 0, None), *ends])
            return
        pool = self._pool
        until_s = asyncio.get_running_loop().time() + pool.options.patience_s
        keys = block_keys(job.prompt_ids, job.cache_scope)
        tried: list[Upstream] = []
        last: UpstreamFailure | None = None
        while len(tried) < _MOST_TRIES:
            try:
                upstream = await pool.choose(
                    keys, len(job.prompt_ids), tried=tried, until_s=until_s
                )
            except EngineUnavailable:
                break
            try:
                await self._try(upstream, index, job, seqs)
            except Overloaded as failure:
                pool.rest(upstream, failure)
            except UpstreamFailure as failure:
                await pool.diagnose(upstream, failure)
                tried.append(upstream)
                last = failure
            else:
                return
        # An upstream that failed and is down now does not count as one that answered.
        silent = isinstance(last, Refused) and not any(upstream.up for upstream in tried)
        raise nobody_left(None if silent else last) from last

    async def _try(self, upstream: Upstream, index: int, job: Job, seqs: Sequence[int]) -> None:
        """Make one attempt. Raises ``UpstreamFailure`` only if it has produced no event."""
        # An upstream that drains stays until its requests end, also those that are written.
        load = self._pool.load(upstream, len(job.prompt_ids), job.max_tokens * len(seqs))
        try:
            request = await self._written(upstream, job, seqs)
            attempt = self._attempt(upstream, request, index, job, seqs, load=load)
            await self._run_attempt(upstream, job, attempt)
        finally:
            load.end()
            for seq in seqs:
                self._attempts.pop((index, seq), None)

    async def _run_attempt(self, upstream: Upstream, job: Job, attempt: Attempt) -> None:
        pool = self._pool
        try:
            await attempt.run()
        except ClientsFault as fault:
            raise upstream.refusal(fault, job) from None
        except UpstreamFailure as failure:
            upstream.failures += 1
            if not attempt.produced:
                raise
            pool.failed(upstream, failure)
            raise error_of(failure, "did not finish its answer") from failure
        else:
            upstream.answered()
        finally:
            for oddity, given in attempt.remarks.items():
                upstream.remark(pool.model, oddity, given)

    async def _written(self, upstream: Upstream, job: Job, seqs: Sequence[int]) -> bytes:
        """Returns the bytes of a request."""

        def write() -> bytes:
            assert upstream.facts is not None  # noqa: S101 - it is up
            path, body = self._pool.dialect.request(
                upstream.api, job, seqs, upstream.facts, self._tokenizer
            )
            return upstream.client.request("POST", path, encoded(body))

        biases = len(job.sampling.logit_bias)
        if len(job.prompt_ids) + _BIAS_TOKENS * biases < _LONG_TOKENS:
            return write()
        return await asyncio.to_thread(write)

    def _attempt(
        self,
        upstream: Upstream,
        request: bytes,
        index: int,
        job: Job,
        seqs: Sequence[int],
        *,
        load: Load,
    ) -> Attempt:
        def begin(events: list[Event]) -> None:
            load.prefilled()
            self.begun = True
            attempt.emit = self._emit
            self._emit(events)

        attempt = Attempt(
            upstream.client,
            request,
            self._pool.dialect.reader(index, job, seqs, self._tokenizer),
            limits=limits_of(self._pool.options, job, len(seqs)),
            emit=begin,
            admitted=lambda: self._taken(index, seqs),
        )
        for seq in seqs:
            self._attempts[index, seq] = attempt
            if (index, seq) in self._unwanted:
                attempt.close(seq)
        return attempt

    def _emit(self, events: list[Event]) -> None:
        """Pass events on. All requests of a job report its prompt; the first report counts."""
        counts = self._counts
        if len(events) == 1 and events[0].__class__ is Sampled:  # nearly always
            counts.generated_tokens += len(events[0].tokens)
            self._mailbox.put(events)
            return
        self.begun = True
        news: list[Event] = []
        for event in events:
            if isinstance(event, Sampled):
                counts.generated_tokens += len(event.tokens)
                news.append(event)
            elif isinstance(event, Ended):
                news.append(event)
            elif self._is_first(event):
                news.append(self._discreet(event))
        self._mailbox.put(news)

    def _discreet(self, event: Prefilled | Counted) -> Prefilled | Counted:
        """Hide cached tokens if they may be those of another scope."""
        apart = "cache_salt" not in self._pool.dialect.lacks
        if apart or not self._jobs[event.job].cache_scope:
            return event
        return msgspec.structs.replace(event, cached_tokens=0)

    def _is_first(self, event: Prefilled | Counted) -> bool:
        """Whether an event about a whole job is the first of its kind; adds up its tokens."""
        seen = self._prefilled if isinstance(event, Prefilled) else self._counted
        if event.job in seen:
            return False
        seen.add(event.job)
        if isinstance(event, Counted):
            self._counts.prompt_tokens += event.prompt_tokens
            self._counts.cached_tokens += event.cached_tokens
        return True
