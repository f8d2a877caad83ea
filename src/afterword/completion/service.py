"""From bytes to answers. Only this module awaits, and only it has a clock and randomness."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from afterword.completion import ranking, tokens
from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.choice import ChoiceBuilder, Delta
from afterword.completion.logprobs import prompt_logprobs
from afterword.completion.plan import ContextBudget, Plan, PlanInputs, make_plan, texts_of
from afterword.completion.request import CompletionRequest, decode
from afterword.core.errors import ApiError
from afterword.core.job import Counted, Ended, Event, Prefilled, Sampled, ScoredPrompt
from afterword.core.limits import Limits
from afterword.core.protocols import Engine, Generation, Tokenizer
from afterword.core.wire import Choice, Chunk, Completion, PromptTokensDetails, Usage

T = TypeVar("T")

_LONG_BODY_BYTES = 4096
"""Longer bodies are parsed and tokenised in a thread: on the loop they would delay streams."""
_ID_BYTES = 18
_OBFUSCATION_STEP = 32


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
    ) -> None:
        self.catalog = catalog
        self.limits = limits
        self._clock = clock
        self._entropy = entropy

    def restricted_to(self, models: Collection[str] | None) -> CompletionService:
        """Returns the service for a key that may use only these models. None means all."""
        if models is None:
            return self
        return CompletionService(
            self.catalog.restricted_to(models),
            self.limits,
            clock=self._clock,
            entropy=self._entropy,
        )

    async def plan(self, body: bytes, *, model: str | None = None) -> Plan:
        """Returns the plan of a body. ``model`` is the path's, if any. Raises ``ApiError``."""
        request = await _off_the_loop(len(body), partial(decode, body, self.limits, model=model))
        served = self.catalog.resolve(request.model) if request.model else self.catalog.default
        budget = ContextBudget(served.engine.card.context_tokens, self.limits)
        tokenizer = served.engine.tokenizer
        tokenizer = await tokenizer.prepare(budget.fitting(texts_of(request), tokenizer))
        decide = partial(self._decide, request, served, tokenizer, budget)
        return await _off_the_loop(len(body), decide)

    def _decide(
        self,
        request: CompletionRequest,
        served: ServedModel,
        tokenizer: Tokenizer,
        budget: ContextBudget,
    ) -> Plan:
        inputs = PlanInputs(
            id=f"cmpl-{base64.urlsafe_b64encode(self._entropy(_ID_BYTES)).decode()}",
            model=request.model or served.name,
            created=int(self._clock()),
            fingerprint=served.engine.card.fingerprint,
            constrain=served.engine.constraint,
            unsupported=served.engine.card.unsupported,
            seed=int.from_bytes(self._entropy(8), "big") >> 1,
        )
        return make_plan(request, tokenizer, budget, inputs)

    def open(self, plan: Plan) -> CompletionStream:
        """Admit a plan. Raises ``ApiError`` if the engine refuses it."""
        engine: Engine = self.catalog.resolve(plan.model).engine
        return CompletionStream(plan, engine.open(plan.jobs), self._entropy)

    async def tokenize(self, body: bytes) -> tokens.Tokenized:
        """Answer POST /tokenize. Raises ``ApiError``."""
        request = await _off_the_loop(len(body), partial(tokens.decode_tokenize, body))
        engine = self._engine(request.model)
        tokenizer = await engine.tokenizer.prepare([(request.prompt, True)])
        count = partial(tokens.tokenize, request, tokenizer, engine.card)
        return await _off_the_loop(len(body), count)

    async def detokenize(self, body: bytes) -> tokens.Detokenized:
        """Answer POST /detokenize. Raises ``ApiError``."""

        def spell() -> tokens.Detokenized:
            request = tokens.decode_detokenize(body)
            engine = self._engine(request.model)
            return tokens.detokenize(request, engine.tokenizer, engine.card)

        return await _off_the_loop(len(body), spell)

    def tokenizer_info(
        self, model: str | None = None, *, vocabulary: bool = False
    ) -> tokens.TokenizerInfo:
        """Answer GET /tokenizer_info, with the ``vocabulary`` on request. Raises ``ApiError``."""
        engine = self._engine(model)
        return tokens.describe(engine.tokenizer, engine.card, vocabulary=vocabulary)

    def _engine(self, model: str | None) -> Engine:
        served = self.catalog.resolve(model) if model else self.catalog.default
        return served.engine


class CompletionStream:
    """A running plan: one stream of events, a builder for each candidate, two ways to fold.

    An async context manager. Leaving it aborts what still runs.
    """

    def __init__(self, plan: Plan, generation: Generation, entropy: Callable[[int], bytes]) -> None:
        self.plan = plan
        self._generation = generation
        self._entropy = entropy
        # Prompt tokens and cached tokens of each job.
        self._prompts = [(len(job.prompt_ids), 0) for job in plan.jobs]
        self._scored: dict[int, ScoredPrompt | None] = {}
        self.on_first_token: Callable[[], None] | None = None
        # A builder is made at its sequence's first event: a request may have thousands.
        self._builders: dict[tuple[int, int], ChoiceBuilder] = {}

    async def __aenter__(self) -> Self:
        """Enter the generation."""
        await self._generation.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Abort what still runs. Tokens that were made but not read still count."""
        if exc_type is not None:
            # Take what is there, without waiting. A timeout means that there is nothing.
            with suppress(TimeoutError, StopAsyncIteration, ApiError):
                async with asyncio.timeout(0):
                    self._fold(await anext(self._generation))
        await self._generation.__aexit__(exc_type, exc, traceback)

    @property
    def usage(self) -> Usage:
        """What the request has used so far (A5)."""
        completion = sum(builder.completion_tokens for builder in self._builders.values())
        prompt = sum(tokens for tokens, _ in self._prompts)
        cached = sum(cached for _, cached in self._prompts)
        return Usage(prompt, completion, prompt + completion, PromptTokensDetails(cached))

    async def completion(self) -> Completion:
        """Returns the whole answer. Raises ``ApiError``."""
        async for events in self._generation:
            self._fold(events)
        plan = self.plan
        choices = [
            self._choice(builder.drain(), i, j)
            for i in range(len(plan.jobs))
            for j, builder in enumerate(self._shown(i))
        ]
        return Completion(plan.id, plan.created, plan.model, choices, self.usage, plan.fingerprint)

    async def chunks(self) -> AsyncIterator[list[Chunk]]:
        """Yields chunks as tokens come: a list has all chunks since the last one."""
        async for events in self._generation:
            made = self._new_chunks(self._fold(events))
            if made:
                yield made
        if self.plan.include_usage:
            yield [self._chunk([], self.usage)]

    def _fold(self, events: list[Event]) -> dict[tuple[int, int], ChoiceBuilder]:
        """Feed the builders. Returns those that changed, in order."""
        changed: dict[tuple[int, int], ChoiceBuilder] = {}
        for event in events:
            match event:
                case Sampled(job=job, seq=seq):
                    builder = changed[job, seq] = self._builder(job, seq)
                    if builder.sampled(event):
                        self._generation.abort(job, seq)
                case Ended(job=job, seq=seq):
                    builder = changed[job, seq] = self._builder(job, seq)
                    builder.ended(event)
                case Prefilled(job=job):
                    self._prompts[job] = (event.prompt_tokens, event.cached_tokens)
                    self._scored[job] = event.scored
                case Counted(job=job):
                    self._prompts[job] = (event.prompt_tokens, event.cached_tokens)
        return changed

    def _builder(self, job: int, seq: int) -> ChoiceBuilder:
        """Returns the builder of a sequence. Its prompt is computed by now."""
        builder = self._builders.get((job, seq))
        if builder is None:
            if not self._builders and self.on_first_token is not None:
                self.on_first_token()
            plan = self.plan
            builder = self._builders[job, seq] = ChoiceBuilder(
                plan.vocab,
                plan.prompts[job],
                plan.shown,
            )
            builder.prefilled(self._scored[job])
        return builder

    def _shown(self, job: int) -> list[ChoiceBuilder]:
        siblings = [self._builders[job, seq] for seq in range(self.plan.candidates)]
        if not self.plan.ranked:
            return siblings
        scores = [(builder.logprob_sum, builder.completion_tokens) for builder in siblings]
        return [siblings[i] for i in ranking.best(scores, self.plan.n)]

    def _new_chunks(self, changed: dict[tuple[int, int], ChoiceBuilder]) -> list[Chunk]:
        chunks = []
        for (job, seq), builder in changed.items():
            deltas = builder.drain_each()
            generated = builder.completion_tokens - sum(len(one.token_ids) for one in deltas)
            for delta in deltas:
                generated += len(delta.token_ids)
                choice = self._choice(delta, job, seq)
                chunks.append(self._chunk([choice], self._usage_of(job, generated)))
        return chunks

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
            prompt_ids = plan.jobs[job].prompt_ids
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
            plan.id, plan.created, plan.model, choices, plan.fingerprint, usage, obfuscation
        )

    def _padding(self, text_characters: int) -> str:
        """Returns random characters that fill a text up to a multiple of 32 characters."""
        missing = -text_characters % _OBFUSCATION_STEP
        return base64.urlsafe_b64encode(self._entropy(missing)).decode()[:missing]


async def _off_the_loop(size: int, work: Callable[[], T]) -> T:
    """Do long work in a thread, short work at once."""
    return await asyncio.to_thread(work) if size > _LONG_BODY_BYTES else work()
