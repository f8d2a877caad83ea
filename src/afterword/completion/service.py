"""From bytes to answers. Only this module awaits, and only it has a clock and randomness."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from afterword.completion import ranking, templating, tokens
from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.choice import ChoiceBuilder, Delta, EndedBy
from afterword.completion.context_budget import ContextBudget
from afterword.completion.framing import Framing
from afterword.completion.infill import texts_around
from afterword.completion.logprobs import prompt_logprobs
from afterword.completion.plan import (
    InfillOptions,
    Plan,
    PlanInputs,
    make_plan,
    texts_of,
)
from afterword.completion.request import CompletionRequest, decode
from afterword.completion.searching import Searching
from afterword.completion.stopwatch import Stopwatch
from afterword.core.errors import ApiError
from afterword.core.fair_pool import FairPool
from afterword.core.job import Counted, Ended, Event, Prefilled, Sampled, ScoredPrompt
from afterword.core.limits import Limits
from afterword.core.pace import SLICE_COST, Pace
from afterword.core.protocols import Engine, Generation
from afterword.core.wire import (
    Choice,
    Chunk,
    Completion,
    InfillReport,
    PromptTokensDetails,
    Usage,
)

T = TypeVar("T")

_SHORT_BODY_BYTES = 4096
"""Longer bodies are parsed and tokenised in a thread: on the loop they would delay streams."""
_LONG_BODY_BYTES = 64 * 1024
"""Even longer ones in another thread, which they share with their like."""
_FEW_PROMPTS = 16
_SLICE_TOKENS = 128
_VALUE_COST = 0.8
_TOKEN_COST = 4.0
_CHOICE_COST = 20.0
"""Costs for ``Pace``: of a log-probability, a token, a choice or chunk."""
_ID_BYTES = 18
_OBFUSCATION_STEP = 32


class Caller(msgspec.Struct, frozen=True):
    """On whose behalf a request is planned.

    Long work of one ``owner`` takes turns with that of others. ``cache_scope`` says with whom its
    computed prompts are shared; it is empty for all.
    """

    owner: str = ""
    cache_scope: str = ""


class Planning:
    """Threads for work that is too long for the event loop.

    Long bodies, short ones and those of the tokenizer's routes have a thread each. So a text that
    takes seconds waits for others like it, and nobody else does; and no more than three texts are
    tokenised at once, which bounds the memory for that.
    """

    def __init__(self) -> None:
        self._short = FairPool("afterword-planning")
        self._long = FairPool("afterword-planning-long")
        self._tokens = FairPool("afterword-tokenizing")

    async def plan(self, owner: str, size: int, work: Callable[[], T], *, prompts: int = 1) -> T:
        """Returns the result of work on a body of ``size`` bytes."""
        if size <= _SHORT_BODY_BYTES and prompts <= _FEW_PROMPTS:
            return work()
        pool = self._short if size <= _LONG_BODY_BYTES else self._long
        return await pool.run(owner, work)

    async def tokenize(self, owner: str, size: int, work: Callable[[], T]) -> T:
        """Returns the result of work on a body of a tokenizer's route."""
        if size <= _SHORT_BODY_BYTES:
            return work()
        return await self._tokens.run(owner, work)

    async def render(self, owner: str, work: Callable[[], T]) -> T:
        """Returns the result of work with a chat template, which may be long."""
        return await self._tokens.run(owner, work)


class TokenizerCall(msgspec.Struct, frozen=True):
    """A parsed request to tokenise, detokenise or apply a template.

    ``run`` does the work and raises ``ApiError``.
    """

    id: str
    model: str
    run: Callable[[], Awaitable[tokens.Tokenized | tokens.Detokenized | templating.Templated]]


class CompletionService:
    """Plans completion requests, opens them, and tokenises.

    ``clock`` returns Unix seconds, ``entropy(n)`` returns n random bytes.
    """

    def __init__(
        self,
        catalog: Catalog,
        limits: Limits,
        *,
        clock: Callable[[], float],
        entropy: Callable[[int], bytes],
        planning: Planning | None = None,
    ) -> None:
        self.catalog = catalog
        self.limits = limits
        self._clock = clock
        self._entropy = entropy
        self._planning = planning or Planning()

    def restricted_to(self, models: Collection[str] | None) -> CompletionService:
        """Returns the service for a key that may use only these models. None means all."""
        if models is None:
            return self
        return CompletionService(
            self.catalog.restricted_to(models),
            self.limits,
            clock=self._clock,
            entropy=self._entropy,
            planning=self._planning,
        )

    async def plan(
        self, body: bytes, *, model: str | None = None, caller: Caller | None = None
    ) -> Plan:
        """Returns the plan of a body. ``model`` is the path's, if any. Raises ``ApiError``."""
        caller = caller or Caller()
        request = await self.parse(body, partial(decode, model=model), caller)
        return await self.plan_request(request, len(body), caller)

    async def parse(self, body: bytes, read: Callable[[bytes, Limits], T], caller: Caller) -> T:
        """Returns what ``read`` makes of a body. Raises ``ApiError``."""
        return await self._planning.plan(caller.owner, len(body), partial(read, body, self.limits))

    async def plan_request(
        self,
        request: CompletionRequest,
        size: int,
        caller: Caller,
        *,
        infill: InfillOptions | None = None,
    ) -> Plan:
        """Returns the plan of a request that came in ``size`` bytes. Raises ``ApiError``."""
        do = partial(self._planning.plan, caller.owner, size)
        served = self._served(request.model, infills=infill is not None)
        if served.old is not None:
            request = served.old.translate(request)
        budget = ContextBudget(served.engine.card.context_tokens, self.limits)
        tokenizer = served.engine.tokenizer
        cut = infill is not None or request.truncate_prompt_tokens is not None
        place = None if infill is None else infill.place
        chat = None
        wanted = texts_of(request, place)
        if served.chat is not None:
            chat = Framing(request.model or served.name, served.chat, int(self._clock()))
            chat.refuse_fields(request)
            wanted = chat.texts(request)
        texts = budget.fitting(wanted, tokenizer, cut=cut)
        if place is not None:
            around = ((text, False) for text in texts_around(place))
            texts += budget.fitting(around, tokenizer)
        tokenizer = await tokenizer.prepare(texts)
        inputs = PlanInputs(
            id=self._id("cmpl"),
            model=request.model or served.name,
            created=int(self._clock()),
            fingerprint=served.engine.card.fingerprint,
            constrain=served.engine.constraint,
            unsupported=served.engine.card.unsupported,
            sharing=served.engine.card.prefix_sharing,
            # The answer of an infill has it, and its field takes 32 bits.
            seed=int.from_bytes(self._entropy(8), "big") >> (1 if infill is None else 33),
            cache_scope=caller.cache_scope,
            infill=infill,
            chat=chat,
            draws=served.engine.card.draws,
        )
        decide = partial(make_plan, request, tokenizer, budget, inputs)
        return await do(decide, prompts=len(request.prompt))

    def _id(self, kind: str) -> str:
        return f"{kind}-{base64.urlsafe_b64encode(self._entropy(_ID_BYTES)).decode()}"

    def recorded(self, model: str) -> str:
        """Returns the name under which a model's requests are counted. Raises ``ModelNotFound``."""
        return self.catalog.recorded(model)

    def open(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> CompletionStream:
        """Admit a plan. ``clock`` returns monotonic seconds.

        Raises ``ApiError`` if the engine refuses the plan.
        """
        engine: Engine = self.catalog.resolve(plan.model).engine
        watch = Stopwatch(clock) if plan.timed else None
        if plan.search is None:
            return CompletionStream(plan, engine.open(plan.jobs), self._entropy, watch)
        searching = Searching(plan.search, engine.open, clock)
        return CompletionStream(plan, searching, self._entropy, watch, lambda: searching.report)

    async def tokenization(self, body: bytes, owner: str = "") -> TokenizerCall:
        """Parse the body of POST /tokenize. Raises ``ApiError``."""
        do = partial(self._planning.tokenize, owner, len(body))
        request = await do(partial(tokens.decode_tokenize, body))
        served = self._served(request.model)
        engine = served.engine
        tokens.refuse_long_text(request, engine.tokenizer, engine.card)

        async def run() -> tokens.Tokenized:
            tokenizer = await engine.tokenizer.prepare([(request.prompt, True)])
            return await do(partial(tokens.tokenize, request, tokenizer, engine.card))

        return TokenizerCall(self._id("tok"), request.model or served.name, run)

    async def detokenization(self, body: bytes, owner: str = "") -> TokenizerCall:
        """Parse the body of POST /detokenize. Raises ``ApiError``."""
        do = partial(self._planning.tokenize, owner, len(body))
        request = await do(partial(tokens.decode_detokenize, body))
        served = self._served(request.model)
        engine = served.engine
        tokens.refuse_long_ids(request, engine.card)

        async def run() -> tokens.Detokenized:
            return await do(partial(tokens.detokenize, request, engine.tokenizer))

        return TokenizerCall(self._id("tok"), request.model or served.name, run)

    async def templating(self, body: bytes, owner: str = "") -> TokenizerCall:
        """Parse the body of POST /apply-template. Raises ``ApiError``."""
        parse = partial(templating.decode_template, body)
        request = await self._planning.tokenize(owner, len(body), parse)
        served = self._served(request.model)
        engine = served.engine
        templating.refuse_long_messages(request, engine.tokenizer, engine.card)
        now = int(self._clock())
        do = partial(self._planning.render, owner)

        async def run() -> templating.Templated:
            texts = await do(lambda: list(templating.ending(engine.tokenizer, now)))
            tokenizer = await engine.tokenizer.prepare(texts)
            return await do(partial(templating.apply, request, tokenizer, now))

        return TokenizerCall(self._id("tpl"), request.model or served.name, run)

    def tokenizer_info(
        self, model: str | None = None, *, vocabulary: bool = False
    ) -> tokens.TokenizerInfo:
        """Answer GET /tokenizer_info, with the ``vocabulary`` on request. Raises ``ApiError``."""
        engine = self._served(model).engine
        return tokens.describe(engine.tokenizer, engine.card, vocabulary=vocabulary)

    def _served(self, model: str | None, *, infills: bool = False) -> ServedModel:
        if model:
            return self.catalog.resolve(model)
        return self.catalog.default_of_infills if infills else self.catalog.default


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
            (len(job.prompt_ids) - prompt.framed, 0)
            for job, prompt in zip(plan.jobs, plan.prompts, strict=True)
        ]
        self._scored: dict[int, ScoredPrompt | None] = {}
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

    async def chunks(self) -> AsyncIterator[list[Chunk]]:
        """Yields chunks as tokens come: all since the last list, but never many at once."""
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

    def _new_chunks(self, job: int, seq: int, builder: ChoiceBuilder) -> Iterator[Chunk]:
        deltas = builder.drain_each()
        generated = builder.completion_tokens - sum(len(delta.token_ids) for delta in deltas)
        for delta in deltas:
            generated += len(delta.token_ids)
            yield self._chunk([self._choice(delta, job, seq)], self._usage_of(job, generated))

    def _cost(self, choice: Choice) -> float:
        """Returns the cost of making and encoding a chunk of a choice."""
        entries = 0 if choice.logprobs is None else len(choice.logprobs.tokens)
        values = entries * (2 + (self.plan.shown.logprobs or 0))
        return _CHOICE_COST + values * _VALUE_COST + len(choice.text) / 512

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
        return len(event.tokens) * (_TOKEN_COST + len(self.plan.shown.stops)) + values * _VALUE_COST

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
        return builder

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
        more: dict[str, Any] = {}
        if shown.token_ids:
            more["token_ids"] = delta.token_ids
        if delta.first:
            prompt = plan.prompts[job]
            prompt_ids = prompt.ids if prompt.framed else plan.jobs[job].prompt_ids
            if shown.token_ids:
                more["prompt_token_ids"] = list(prompt_ids)
            if shown.prompt_logprobs is not None:
                more["prompt_logprobs"] = prompt_logprobs(
                    prompt_ids, self._scored[job], shown.prompt_logprobs, plan.vocab
                )
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
    """Take the first tokens of the first event, and leave the rest if there are many."""
    event = queue.popleft()
    if not isinstance(event, Sampled):
        raise TypeError("only sampled tokens can be cut")
    if len(event.tokens) <= _SLICE_TOKENS:
        return event
    tops = _SLICE_TOKENS * (len(event.top_ids) // len(event.tokens))
    queue.appendleft(
        Sampled(
            event.job,
            event.seq,
            event.tokens[_SLICE_TOKENS:],
            event.logprobs[_SLICE_TOKENS:],
            event.top_ids[tops:],
            event.top_logprobs[tops:],
        )
    )
    return Sampled(
        event.job,
        event.seq,
        event.tokens[:_SLICE_TOKENS],
        event.logprobs[:_SLICE_TOKENS],
        event.top_ids[:tops],
        event.top_logprobs[:tops],
    )
