"""From bytes to running plans. Only this module has a clock and randomness."""

from __future__ import annotations

import string
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Generic, TypeVar

import msgspec

from afterword.completion import templating, tokens
from afterword.completion.bodies import LONG_BODY_BYTES
from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.context_budget import ContextBudget
from afterword.completion.framing import Framing
from afterword.completion.infill import texts_around
from afterword.completion.plan import (
    InfillOptions,
    Plan,
    PlanInputs,
    make_plan,
)
from afterword.completion.prompts import texts_of
from afterword.completion.request import CompletionRequest, decode
from afterword.completion.searching import Searching
from afterword.completion.stopwatch import Stopwatch
from afterword.completion.stream import CompletionStream
from afterword.core.fair_pool import FairPool
from afterword.core.limits import Limits
from afterword.core.protocols import Engine

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_SHORT_BODY_BYTES = 4096
"""Longer bodies are parsed and tokenised in a thread: on the loop they would delay streams."""
_FEW_PROMPTS = 16
_ID_LETTERS = 24
_LETTERS = string.ascii_letters + string.digits


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

    async def plan(
        self,
        owner: str,
        size: int,
        work: Callable[[], T],
        *,
        prompts: int = 1,
        costly: bool = False,
    ) -> T:
        """Returns the result of work on a body of ``size`` bytes.

        ``costly``: it may take long, however short the body is.
        """
        if size <= _SHORT_BODY_BYTES and prompts <= _FEW_PROMPTS and not costly:
            return work()
        pool = self._short if size <= LONG_BODY_BYTES else self._long
        return await pool.run(owner, work)

    async def tokenize(self, owner: str, size: int, work: Callable[[], T]) -> T:
        """Returns the result of work on a body of a tokenizer's route."""
        if size <= _SHORT_BODY_BYTES:
            return work()
        return await self._tokens.run(owner, work)

    async def render(self, owner: str, work: Callable[[], T]) -> T:
        """Returns the result of work with a chat template, which may be long."""
        return await self._tokens.run(owner, work)


class TokenizerCall(msgspec.Struct, Generic[T_co], frozen=True):
    """A parsed request to tokenise, detokenise or apply a template.

    ``run`` does the work and raises ``ApiError``.
    """

    id: str
    model: str
    run: Callable[[], Awaitable[T_co]]


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
        spelled = False
        if served.old is not None:
            # OpenAI's tokens of text are text, also where they spell a special token's name.
            spelled = any(not isinstance(prompt, str) for prompt in request.prompt)
            request = await do(partial(served.old.translate, request))
        budget = ContextBudget(served.engine.card.context_tokens, self.limits)
        tokenizer = served.engine.tokenizer
        cut = infill is not None or request.truncate_prompt_tokens is not None
        place = None if infill is None else infill.place
        chat = None
        wanted = texts_of(request, place, spelled=spelled)
        if served.chat is not None:
            chat = Framing(request.model or served.name, served.chat, int(self._clock()))
            chat.refuse_fields(request, infills=infill is not None)
            wanted = chat.texts(request)
        fitting = partial(budget.fitting, wanted, tokenizer, cut=cut)
        # A template may take long, and each prompt is rendered.
        texts = fitting() if chat is None else await do(fitting, costly=True)
        if place is not None:
            around = ((text, False) for text in texts_around(place))
            texts += budget.fitting(around, tokenizer)
        tokenizer = await tokenizer.prepare(texts)
        inputs = PlanInputs(
            id=self._id("cmpl"),
            model=request.model or served.name,
            created=int(self._clock()),
            fingerprint=served.fingerprint,
            constrain=served.engine.constraint,
            unsupported=served.engine.card.unsupported,
            sharing=served.engine.card.prefix_sharing,
            # The answer of an infill has it, and its field takes 32 bits.
            seed=int.from_bytes(self._entropy(8), "big") >> (1 if infill is None else 33),
            cache_scope=caller.cache_scope,
            infill=infill,
            chat=chat,
            spelled=spelled,
            draws=served.engine.card.draws,
        )
        decide = partial(make_plan, request, tokenizer, budget, inputs)
        costly = chat is not None or _is_costly(request)
        return await do(decide, prompts=len(request.prompt), costly=costly)

    def _id(self, kind: str) -> str:
        random = "".join(_LETTERS[byte % len(_LETTERS)] for byte in self._entropy(_ID_LETTERS))
        return f"{kind}-{random}"

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
        searching = Searching(plan.search, engine, clock)
        return CompletionStream(plan, searching, self._entropy, watch, lambda: searching.report)

    async def tokenization(self, body: bytes, owner: str = "") -> TokenizerCall[tokens.Tokenized]:
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

    async def detokenization(
        self, body: bytes, owner: str = ""
    ) -> TokenizerCall[tokens.Detokenized]:
        """Parse the body of POST /detokenize. Raises ``ApiError``."""
        do = partial(self._planning.tokenize, owner, len(body))
        request = await do(partial(tokens.decode_detokenize, body))
        served = self._served(request.model)
        engine = served.engine
        tokens.refuse_long_ids(request, engine.card)

        def text() -> tokens.Detokenized:
            if served.old is not None:
                return tokens.Detokenized(served.old.vocabulary.text(request.tokens, "tokens"))
            return tokens.detokenize(request, engine.tokenizer)

        async def run() -> tokens.Detokenized:
            return await do(text)

        return TokenizerCall(self._id("tok"), request.model or served.name, run)

    async def templating(self, body: bytes, owner: str = "") -> TokenizerCall[templating.Templated]:
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


def _is_costly(request: CompletionRequest) -> bool:
    """Whether a grammar is compiled, or a vocabulary searched for breakers."""
    structured = request.response_format is not None or request.structured_outputs is not None
    return structured or bool(request.dry_multiplier)
