"""An engine that is other servers: jobs become requests, their streams become events."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import msgspec

from afterword.core.errors import (
    ApiError,
    ConfigError,
    EngineFailed,
    EngineOverloaded,
    EngineUnavailable,
)
from afterword.core.job import Counted, Ended, Event, Job, Prefilled, Sampled
from afterword.core.protocols import EngineCard, EngineStats
from afterword.engine.mailbox import Mailbox
from afterword.engine.remote.address import Address
from afterword.engine.remote.attempt import Attempt
from afterword.engine.remote.completions import AfterwordDialect, OpenaiDialect, VllmDialect
from afterword.engine.remote.dialect import AnyTokenizer, Dialect, Facts, identity, refuse
from afterword.engine.remote.failures import ClientsFault, Overloaded, Refused, UpstreamFailure
from afterword.engine.remote.llamacpp import LlamacppDialect
from afterword.engine.remote.pool import Pool, PoolOptions
from afterword.engine.remote.prefixes import block_keys
from afterword.engine.remote.sglang import SglangDialect
from afterword.engine.remote.upstream import Upstream
from afterword.engine.remote.vocabulary import RemoteTokenizer, TextTokenizer

_log = logging.getLogger("afterword.upstream")
_encode = msgspec.json.Encoder().encode

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        AfterwordDialect(),
        VllmDialect(),
        SglangDialect(),
        LlamacppDialect(),
        OpenaiDialect(),
    )
}
_MOST_TOGETHER = 64
"""How many requests to upstreams one request of a client makes at a time."""
_RETRY_AFTER_S = 1
_MOST_TRIES = 2


async def open_remote(
    name: str, addresses: Sequence[Address], *, options: PoolOptions, max_waiting: int = 256
) -> RemoteEngine:
    """Ask the upstreams what they are, and stand in front of them. Raises ``ConfigError``."""
    dialect = DIALECTS[addresses[0].dialect]
    pool = Pool(name, dialect, addresses, options)
    try:
        found = await pool.survey()
        engine = RemoteEngine(pool, found, max_waiting=max_waiting)
        pool.watch()
    except BaseException:
        await pool.aclose()
        raise
    return engine


class RemoteEngine:
    """An ``Engine`` over a pool of upstreams. All methods belong to the event loop's thread.

    ``found`` are the facts of those that answered. At most ``max_waiting`` requests wait for
    their first token; one more is refused.
    """

    def __init__(self, pool: Pool, found: Sequence[Facts], *, max_waiting: int) -> None:
        self.pool = pool
        self._facts = found[0]
        self._max_waiting = max_waiting
        self._generations: set[RemoteGeneration] = set()
        self._closed = False
        self.tokenizer: AnyTokenizer = self._tokenizer()
        self.counts = _Counts()
        context = min(facts.context_tokens for facts in found)
        self._facts = msgspec.structs.replace(found[0], context_tokens=context)
        digest = identity(pool.dialect.name, *sorted({facts.identity for facts in found}))
        self.card = EngineCard(
            context_tokens=context,
            fingerprint=f"fp_{digest[:10]}",
            batch_invariant=all(facts.batch_invariant for facts in found),
            details={
                "engine": pool.dialect.title,
                "upstreams": len(pool.upstreams),
                "upstream_model": self._facts.model,
            },
        )
        pool.admit_only(self._against)

    def _tokenizer(self) -> AnyTokenizer:
        facts, dialect = self._facts, self.pool.dialect
        if facts.vocabulary is None:
            origin = self.pool.upstreams[0].address.origin
            return TextTokenizer(f"{dialect.title} at {origin} has no tokenizer.")
        return RemoteTokenizer(
            facts.vocabulary, chat_template=facts.chat_template, encode=self._ids_of
        )

    async def _ids_of(self, text: str, parse_special: bool) -> list[int]:
        """Have a text tokenised; names of special tokens are text where they should be."""
        dialect = self.pool.dialect
        whole = parse_special or dialect.takes_names_as_text
        parts = [text] if whole else self._without_names(text)
        ids: list[int] = []
        for part in parts:
            ids += await self.pool.ask(
                lambda upstream, facts, part=part: dialect.encode(  # type: ignore[misc]
                    upstream.api, facts.model, part, parse_special=parse_special
                )
            )
        return ids

    def _without_names(self, text: str) -> list[str]:
        """A text in parts, none of which has the whole name of a special token."""
        pieces = self.tokenizer.pieces
        names = [pieces[i].decode() for i in sorted(self.tokenizer.special_ids)]
        found = [name for name in names if len(name) > 1 and name in text]
        if not found:
            return [text]
        longest_first = sorted(found, key=len, reverse=True)
        parts, start = [], 0
        for match in re.finditer("|".join(map(re.escape, longest_first)), text):
            parts.append(text[start : match.start() + 1])
            start = match.start() + 1
        return [*parts, text[start:]]

    def _against(self, facts: Facts) -> str | None:
        """Why an upstream cannot stand beside the first one."""
        mine = self._facts
        if facts.vocabulary != mine.vocabulary:
            return "its vocabulary is another one"
        if facts.context_tokens < mine.context_tokens:
            return f"its context of {facts.context_tokens} tokens is shorter"
        return None

    def open(self, jobs: Sequence[Job]) -> RemoteGeneration:
        """Admit the jobs of one request; see ``core.protocols.Engine``."""
        if self._closed:
            raise EngineUnavailable("The engine is not available.")
        if not self.pool.healthy:
            raise _error_of(broke=False)
        refuse(self.pool.dialect, self._facts, self.pool.upstreams[0].address.origin, jobs)
        waiting = sum(not generation.begun for generation in self._generations)
        if waiting >= self._max_waiting:
            raise EngineOverloaded(
                "The engine is currently overloaded, please try again later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        self.pool.watch()
        generation = RemoteGeneration(self, jobs)
        self._generations.add(generation)
        return generation

    def leave(self, generation: RemoteGeneration) -> None:
        """A generation is over."""
        self._generations.discard(generation)
        self.pool.drop_drained()

    def healthy(self) -> bool:
        """Whether some upstream answers."""
        return self.pool.healthy and not self._closed

    def stats(self) -> EngineStats:
        """What goes on now; the upstreams' slots are their own."""
        begun = [generation for generation in self._generations if generation.begun]
        return EngineStats(
            running_sequences=sum(generation.sequences for generation in begun),
            waiting_sequences=sum(g.sequences for g in self._generations if not g.begun),
            prefilled_tokens=self.counts.prompt_tokens - self.counts.cached_tokens,
            cached_tokens=self.counts.cached_tokens,
            generated_tokens=self.counts.generated_tokens,
        )

    async def retarget(self, addresses: Sequence[Address]) -> None:
        """Serve from other addresses of the same dialect from now on; nothing is interrupted."""
        if addresses[0].dialect != self.pool.dialect.name:
            raise ConfigError(
                f"model {self.pool.model}: another dialect needs another start of the server"
            )
        await self.pool.retarget(addresses)

    async def aclose(self) -> None:
        """Abort what runs, close connections. Idempotent."""
        self._closed = True
        for generation in list(self._generations):
            generation.end(EngineUnavailable("The server is shutting down."))
        await self.pool.aclose()


class _Counts:
    """What went through, for the metrics."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generated_tokens = 0


class RemoteGeneration:
    """The running jobs of one request; see ``core.protocols.Generation``."""

    def __init__(self, engine: RemoteEngine, jobs: Sequence[Job]) -> None:
        self._engine = engine
        self._jobs = jobs
        self._mailbox = Mailbox()
        self._attempts: dict[tuple[int, int], Attempt] = {}
        self._unwanted: set[tuple[int, int]] = set()
        self._prefilled: set[int] = set()
        self._counted: set[int] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self.begun = False

    @property
    def sequences(self) -> int:
        """How many sequences the jobs have."""
        return sum(job.n for job in self._jobs)

    async def __aenter__(self) -> Self:
        """Send the requests; returns when upstreams have taken those that go first."""
        loop = asyncio.get_running_loop()
        together = asyncio.Semaphore(_MOST_TOGETHER)
        groups = self._engine.pool.dialect.groups
        units = [(i, job, seqs) for i, job in enumerate(self._jobs) for seqs in groups(job)]
        self._left = len(units)
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
        """Abort what still runs."""
        await self._stop()

    def __aiter__(self) -> Self:
        """Iterate over lists of events."""
        return self

    async def __anext__(self) -> list[Event]:
        """All that happened since the last call."""
        events = await self._mailbox.take()
        if not events:
            raise StopAsyncIteration
        return events

    def abort(self, job: int, seq: int) -> None:
        """Stop one sibling. Where others share its request, only its tokens are dropped."""
        self._unwanted.add((job, seq))
        attempt = self._attempts.get((job, seq))
        if attempt is not None:
            attempt.close(seq)

    def end(self, error: Exception) -> None:
        """Nothing more comes but the error."""
        self._mailbox.close(error)
        for attempt in dict.fromkeys(self._attempts.values()):
            attempt.abort()

    async def _stop(self) -> None:
        # Upstreams are left at once, not when the tasks get their turn.
        for attempt in dict.fromkeys(self._attempts.values()):
            attempt.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._engine.leave(self)

    async def _run(
        self, index: int, job: Job, seqs: Sequence[int], together: asyncio.Semaphore
    ) -> None:
        """Have some siblings of a job made."""
        try:
            async with together:
                await self._make(index, job, seqs)
        except Exception as error:  # noqa: BLE001 - whoever reads the generation gets it
            if self._admission.done():
                self.end(error)
            else:
                self._admission.set_exception(error)
        else:
            self._taken(index, seqs)
            self._left -= 1
            if not self._left:
                self._mailbox.close()

    def _taken(self, index: int, seqs: Sequence[int]) -> None:
        """An upstream works on some siblings."""
        self._untaken.discard((index, seqs[0]))
        if not self._untaken and not self._admission.done():
            self._admission.set_result(None)

    async def _make(self, index: int, job: Job, seqs: Sequence[int]) -> None:
        engine = self._engine
        if not job.max_tokens and job.prompt_logprobs is None:
            ends: list[Event] = [Ended(index, seq, "length", 0) for seq in seqs]
            self._emit([Prefilled(index, len(job.prompt_ids), 0, None), *ends])
            return
        pool = engine.pool
        until_s = asyncio.get_running_loop().time() + pool.options.patience_s
        keys = block_keys(job.prompt_ids)
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
                await pool.examine(upstream, failure)
                tried.append(upstream)
                last = failure
            else:
                return
        broke = isinstance(last, Refused) and any(upstream.up for upstream in tried)
        raise _error_of(broke=broke) from last

    async def _try(self, upstream: Upstream, index: int, job: Job, seqs: Sequence[int]) -> None:
        """One attempt at one upstream. Raises ``UpstreamFailure`` only if it produced nothing."""
        pool = self._engine.pool
        attempt = self._attempt(upstream, index, job, seqs)
        load = pool.load(upstream, len(job.prompt_ids), job.max_tokens * len(seqs))
        try:
            await attempt.run()
        except ClientsFault as fault:
            raise fault.error from None
        except UpstreamFailure as failure:
            if not attempt.produced:
                raise
            pool.failed(upstream, failure)
            raise EngineFailed("The server of this model broke off.") from failure
        else:
            upstream.answered()
        finally:
            load.end()
            for seq in seqs:
                self._attempts.pop((index, seq), None)

    def _attempt(self, upstream: Upstream, index: int, job: Job, seqs: Sequence[int]) -> Attempt:
        engine = self._engine
        dialect, tokenizer = engine.pool.dialect, engine.tokenizer
        assert upstream.facts is not None  # noqa: S101 - it is up
        path, body = dialect.request(upstream.api, job, seqs, upstream.facts, tokenizer)
        attempt = Attempt(
            upstream.client,
            upstream.client.request("POST", path, _encode(body)),
            dialect.reader(index, job, seqs, tokenizer),
            options=engine.pool.options,
            emit=self._emit,
            admitted=lambda: self._taken(index, seqs),
        )
        for seq in seqs:
            self._attempts[index, seq] = attempt
            if (index, seq) in self._unwanted:
                attempt.close(seq)
        return attempt

    def _emit(self, events: list[Event]) -> None:
        """Pass events on. Requests for siblings of one job say all that its prompt is computed."""
        self.begun = True
        self._mailbox.put([event for event in events if self._is_news(event)])

    def _is_news(self, event: Event) -> bool:
        counts = self._engine.counts
        if isinstance(event, Sampled):
            counts.generated_tokens += len(event.tokens)
        elif isinstance(event, Prefilled):
            if event.job in self._prefilled:
                return False
            self._prefilled.add(event.job)
        elif isinstance(event, Counted):
            if event.job in self._counted:
                return False
            self._counted.add(event.job)
            counts.prompt_tokens += event.prompt_tokens
            counts.cached_tokens += event.cached_tokens
        return True


def _error_of(*, broke: bool) -> ApiError:
    """What a client is told when no upstream is left: they fail at this request, or at all."""
    if broke:
        return EngineFailed("The server of this model failed.")
    return EngineUnavailable(
        "No server of this model can be reached.", retry_after_s=_RETRY_AFTER_S
    )
