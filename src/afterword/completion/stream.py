"""A running plan: events become an answer, as a whole or chunk by chunk."""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec

from afterword.completion import ranking
from afterword.completion.choice import ChoiceBuilder, Delta, EndedBy
from afterword.completion.logprobs import prompt_logprobs
from afterword.completion.plan import Plan
from afterword.completion.stopwatch import Stopwatch
from afterword.core.errors import ApiError
from afterword.core.job import Counted, Ended, Event, Prefilled, Sampled, ScoredPrompt
from afterword.core.pace import SLICE_COST, Pace
from afterword.core.protocols import Generation
from afterword.core.wire import (
    Choice,
    Chunk,
    Completion,
    InfillReport,
    PromptTokensDetails,
    Usage,
)

_SLICE_TOKENS = 128
_SLICE_VALUES = 512
"""The most tokens, and log-probabilities with their alternatives, that are folded in one go."""
_VALUE_COST = 0.8
_ENTRY_COST = 2.0
_TOKEN_COST = 4.0
_CHOICE_COST = 20.0
"""Costs for ``Pace``: of a log-probability written, or folded; a token, a choice or chunk."""
_BYTE_COST = 1 / 1000
"""Of a byte that is written already."""
_FEW_TOKENS = 16
"""The most that go to a sink in one chunk."""
_OBFUSCATION_STEP = 32
_encode = msgspec.json.Encoder().encode


class Sink(Protocol):
    """Where chunks go as soon as their tokens are there."""

    def is_free(self) -> bool:
        """Returns whether ``send`` may be called now."""

    def send(self, chunk: Chunk) -> None:
        """Send a chunk, without a wait."""


class CompletionStream:
    """A running plan: one stream of events, a builder for each candidate, two ways to fold.

    An async context manager. Leaving it aborts what still runs.
    """

    def __init__(
        self,
        plan: Plan,
        generation: Generation,
        entropy: Callable[[int], bytes],
        watch: Stopwatch | None = None,
        report: Callable[[], InfillReport] | None = None,
    ) -> None:
        self.plan = plan
        self.watch = watch
        self._report = report
        self._generation = generation
        self._entropy = entropy
        # Prompt tokens and cached tokens of each job.
        self._prompts = [
            (job.prompt_tokens - prompt.framed, 0)
            for job, prompt in zip(plan.jobs, plan.prompts, strict=True)
        ]
        self._scored: dict[int, ScoredPrompt | None] = {}
        # vLLM's log-probabilities of each job's prompt as JSON, which all of its choices show.
        self._ranked: dict[int, bytes] = {}
        self._discarded = 0
        self.on_first_token: Callable[[], None] | None = None
        # A builder is made at its sequence's first event: a request may have thousands.
        self._builders: dict[tuple[int, int], ChoiceBuilder] = {}
        # Events that were taken and are not folded yet.
        self._events: deque[Event] = deque()
        self.pace = Pace()

    async def __aenter__(self) -> Self:
        """Enter the generation."""
        await self._generation.__aenter__()
        if self.watch is not None:
            self.watch.taken()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Abort what still runs. Tokens that were made but not read still count."""
        self._generation.shorten(None)
        try:
            if exc_type is not None:
                # Take what is there, without waiting. A timeout means that there is nothing.
                with suppress(TimeoutError, StopAsyncIteration, ApiError):
                    async with asyncio.timeout(0):
                        self._events += await anext(self._generation)
                await self._fold([])
        finally:
            # A second cancellation may come meanwhile.
            await self._generation.__aexit__(exc_type, exc, traceback)

    @property
    def usage(self) -> Usage:
        """What the request has used so far (A5)."""
        shown = sum(builder.completion_tokens for builder in self._builders.values())
        completion = shown + self._discarded
        prompt = sum(tokens for tokens, _ in self._prompts)
        cached = sum(cached for _, cached in self._prompts)
        return Usage(prompt, completion, prompt + completion, PromptTokensDetails(cached))

    async def completion(self) -> Completion:
        """Returns the whole answer. Raises ``ApiError``."""
        choices = [choice async for choice in self.choices()]
        choices.sort(key=lambda choice: choice.index)
        return self.whole(choices)

    def whole(self, choices: list[Choice]) -> Completion:
        """Returns the answer with these choices, and the usage so far."""
        plan = self.plan
        return Completion(
            plan.id, plan.created, plan.model, choices, self.usage, plan.fingerprint, self.infill
        )

    @property
    def infill(self) -> InfillReport | msgspec.UnsetType:
        """How the middles were found, if a search found them (F3)."""
        return msgspec.UNSET if self._report is None else self._report()

    async def choices(self) -> AsyncIterator[Choice]:
        """Yields the choices of each prompt as soon as all of its candidates have ended.

        So a caller that writes them down holds no more of a long answer than that. Raises
        ``ApiError``.
        """
        plan = self.plan
        left = [plan.candidates] * len(plan.jobs)
        over: set[tuple[int, int]] = set()
        async for events in self._generation:
            for key, builder in (await self._fold(events)).items():
                if builder.finish_reason is None or key in over:
                    continue
                over.add(key)
                job = key[0]
                left[job] -= 1
                if left[job]:
                    continue
                for place, shown in enumerate(self._shown(job)):
                    yield self._choice(shown.drain(), job, place)
        if any(left):
            raise RuntimeError("a generation ended without ending one of its sequences")

    async def chunks(self, sink: Sink | None = None) -> AsyncIterator[list[Chunk]]:
        """Yields chunks as tokens come: all since the last list, but never many at once.

        What comes while the caller waits for the next list may go to the ``sink`` in its place.
        """
        if sink is not None:
            self._generation.shorten(partial(self._pass_on, sink))
        async for events in self._generation:
            made: list[Chunk] = []
            cost = 0.0
            for (job, seq), builder in (await self._fold(events)).items():
                for chunk in self._new_chunks(job, seq, builder):
                    made.append(chunk)
                    cost += self._cost(chunk.choices[0])
                    if cost >= SLICE_COST:
                        yield made
                        await self.pace.spend(cost)
                        made, cost = [], 0.0
            if made:
                yield made
        if self.plan.include_usage:
            yield [self._chunk([], self.usage)]

    def _pass_on(self, sink: Sink, events: list[Event]) -> bool:
        """Send what can be one chunk. Returns whether it was."""
        event = events[0]
        if len(events) > 1 or not isinstance(event, Sampled):
            return False
        job, seq = event.job, event.seq
        builder = self._builders.get((job, seq))
        most = 1 if event.logprobs else _FEW_TOKENS
        if builder is None or len(event.tokens) > most or not sink.is_free():
            return False
        is_over = builder.sampled(event, late=self._is_late(events))
        delta = builder.drain()
        if delta is not None:
            usage = self._usage_of(job, builder.completion_tokens)
            sink.send(self._chunk([self._choice(delta, job, seq)], usage))
        if is_over:
            self._generation.abort(job, seq)
        return True

    def _new_chunks(self, job: int, seq: int, builder: ChoiceBuilder) -> Iterator[Chunk]:
        generated = builder.completion_tokens - builder.undrained_tokens
        for delta in builder.drain_each():
            generated += len(delta.token_ids)
            yield self._chunk([self._choice(delta, job, seq)], self._usage_of(job, generated))

    def _cost(self, choice: Choice) -> float:
        """Returns the cost of making and encoding a chunk of a choice."""
        entries = 0 if choice.logprobs is None else len(choice.logprobs.tokens)
        values = entries * (2 + (self.plan.shown.logprobs or 0))
        written = 0
        if choice.prompt_logprobs is not msgspec.UNSET:
            written = memoryview(choice.prompt_logprobs).nbytes
        return _CHOICE_COST + values * _VALUE_COST + len(choice.text) / 512 + written * _BYTE_COST

    async def _fold(self, events: list[Event]) -> dict[tuple[int, int], ChoiceBuilder]:
        """Feed the builders. Returns those that changed, in order."""
        # An event leaves the queue when it is folded, so a cancellation loses none.
        queue = self._events
        queue.extend(events)
        late = self._is_late(queue)
        changed: dict[tuple[int, int], ChoiceBuilder] = {}
        while queue:
            match queue[0]:
                case Sampled(job=job, seq=seq):
                    builder = changed[job, seq] = await self._builder(job, seq)
                    event = _cut(queue)
                    if builder.sampled(event, late=late):
                        self._generation.abort(job, seq)
                    await self.pace.spend(self._folding_cost(event))
                case Ended(job=job, seq=seq) as ended:
                    builder = changed[job, seq] = await self._builder(job, seq)
                    queue.popleft()
                    builder.ended(ended)
                case Prefilled(job=job) as prefilled:
                    queue.popleft()
                    self._count(job, prefilled)
                    self._scored[job] = prefilled.scored
                case Counted(job=job) as counted:
                    queue.popleft()
                    self._count(job, counted)
                    self._discarded += counted.discarded_tokens
        return changed

    def _count(self, job: int, event: Prefilled | Counted) -> None:
        """Note the tokens of a prompt, without those of a chat template around it."""
        prompt = self.plan.prompts[job]
        tokens, cached = event.prompt_tokens, event.cached_tokens
        if prompt.framed:
            tokens -= prompt.framed
            cached = min(max(cached - prompt.hidden, 0), tokens)
        self._prompts[job] = (tokens, cached)

    def _is_late(self, events: Iterable[Event]) -> bool:
        """Note the time. Returns whether the generation took as long as it may."""
        if self.watch is None:
            return False
        self.watch.read(generates=any(isinstance(event, Sampled) for event in events))
        most_ms = self.plan.shown.most_ms
        return most_ms is not None and self.watch.generated_ms > most_ms

    def end_of(self, job: int, seq: int) -> tuple[EndedBy | None, str]:
        """Returns what ended a sequence, None if it runs, and the stop string that it met."""
        builder = self._builders[job, seq]
        return builder.ended_by, builder.stop_met

    def _folding_cost(self, event: Sampled) -> float:
        values = len(event.logprobs) + len(event.top_ids)
        return len(event.tokens) * (_TOKEN_COST + len(self.plan.shown.stops)) + values * _ENTRY_COST

    async def _builder(self, job: int, seq: int) -> ChoiceBuilder:
        """Returns the builder of a sequence. Its prompt is computed by now."""
        builder = self._builders.get((job, seq))
        if builder is None:
            if not self._builders and self.on_first_token is not None:
                self.on_first_token()
            plan = self.plan
            builder = self._builders[job, seq] = ChoiceBuilder(
                plan.vocab, plan.prompts[job], plan.shown
            )
            await self.pace.spend(_CHOICE_COST)
            for values in builder.prefilled(self._scored[job]):
                await self.pace.spend(values * _VALUE_COST)
            if plan.shown.prompt_logprobs is not None and job not in self._ranked:
                await self._write_ranked(job, plan.shown.prompt_logprobs)
        return builder

    async def _write_ranked(self, job: int, k: int) -> None:
        """Write vLLM's log-probabilities of a prompt: once, because choices repeat them (R17)."""
        parts: list[bytes] = []
        for entry in prompt_logprobs(self._shown_ids(job), self._scored[job], k, self.plan.vocab):
            parts.append(_encode(entry))
            await self.pace.spend(len(entry or ()) * _VALUE_COST)
        self._ranked[job] = b"[%b]" % b",".join(parts)

    def _shown_ids(self, job: int) -> Sequence[int]:
        """Returns the ids of a prompt that answers show."""
        prompt = self.plan.prompts[job]
        return prompt.ids if prompt.framed else self.plan.jobs[job].prompt_ids

    def _shown(self, job: int) -> list[ChoiceBuilder]:
        siblings = [self._builders[job, seq] for seq in range(self.plan.candidates)]
        if not self.plan.ranked:
            return siblings
        scores = [(builder.logprob_sum, builder.completion_tokens) for builder in siblings]
        return [siblings[i] for i in ranking.best(scores, self.plan.n)]

    def _usage_of(self, job: int, generated: int) -> Usage | msgspec.UnsetType | None:
        """Returns the usage that a chunk of a choice shows (S5, S10)."""
        if not self.plan.include_usage:
            return msgspec.UNSET
        if not self.plan.continuous_usage:
            return None
        prompt, cached = self._prompts[job]
        return Usage(prompt, generated, prompt + generated, PromptTokensDetails(cached))

    def _choice(self, delta: Delta | None, job: int, place: int) -> Choice:
        """Returns a choice as the answer shows it."""
        if delta is None:
            raise RuntimeError("a generation ended without ending one of its sequences")
        plan = self.plan
        shown = plan.shown
        choice = Choice(delta.text, job * plan.n + place, delta.logprobs, delta.finish_reason)
        if not (delta.first or shown.token_ids):
            return choice
        more: dict[str, Any] = {}
        if shown.token_ids:
            more["token_ids"] = delta.token_ids
        if delta.first:
            if shown.token_ids:
                more["prompt_token_ids"] = list(self._shown_ids(job))
            if shown.prompt_logprobs is not None:
                more["prompt_logprobs"] = msgspec.Raw(self._ranked[job])
        return msgspec.structs.replace(choice, **more) if more else choice

    def _chunk(self, choices: list[Choice], usage: Usage | msgspec.UnsetType | None) -> Chunk:
        plan = self.plan
        obfuscation: str | msgspec.UnsetType = msgspec.UNSET
        if plan.include_obfuscation and choices:
            obfuscation = self._padding(len(choices[0].text))
        return Chunk(
            plan.id,
            plan.created,
            plan.model,
            choices,
            plan.fingerprint,
            usage,
            obfuscation,
            self.infill,
        )

    def _padding(self, text_characters: int) -> str:
        """Returns random characters that fill a text up to a multiple of 32 characters."""
        missing = -text_characters % _OBFUSCATION_STEP
        return base64.urlsafe_b64encode(self._entropy(missing)).decode()[:missing]


def _cut(queue: deque[Event]) -> Sampled:
    """Take the first tokens of the first event, and leave the rest in pieces if there are many."""
    event = queue.popleft()
    if not isinstance(event, Sampled):
        raise TypeError("only sampled tokens can be cut")
    tokens = len(event.tokens)
    width = len(event.top_ids) // tokens if tokens else 0
    most = max(1, min(_SLICE_TOKENS, _SLICE_VALUES // (1 + width)))
    if tokens <= most:
        return event
    # All at once: to cut off one after another would copy the rest each time.
    for end in range(tokens, 0, -most):
        one = slice(max(end - most, 0), end)
        tops = slice(one.start * width, end * width)
        queue.appendleft(
            Sampled(
                event.job,
                event.seq,
                event.tokens[one],
                event.logprobs[one],
                event.top_ids[tops],
                event.top_logprobs[tops],
            )
        )
    return _cut(queue)
