"""Serves a model step by step: the real runner, scheduler and sampler without thread or clock."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import msgspec

from afterword.core.job import Ended, Event, Job, Prefilled, Sampled, ScoredPrompt
from afterword.engine.batching.outcome import evaluate
from afterword.engine.batching.scheduler import Scheduler
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.context import ContextOptions
from afterword.engine.llama.engine import OpenModel, open_model
from afterword.engine.llama.loading import EngineOptions, Loaded, load
from afterword.engine.llama.memory import model_memory
from zoo.architectures import CONTEXT

SLOTS = 3
CONTEXTS = 4
BUDGET = 128
"""Default number of prompt tokens in a step."""
_MOST_STEPS = 20_000
_SMALL = ContextOptions(
    slots=1, slot_tokens=256, batch_tokens=64, max_rows=32, threads=1, exact=True
)
_TWO_THREADS = EngineOptions(threads=2)
_SCORE_BYTES = 2**20
_STRETCH_IDS = range(260, 388)
_CHECKPOINT_BYTES = 2**22

Request: TypeAlias = tuple[Job, ...]
Place: TypeAlias = tuple[int, int]
"""The index of a job in a request, and of one of its siblings."""


def is_single(request: Request) -> bool:
    """Whether a request is one sequence, so that it is alone in each batch if no other runs."""
    return len(request) == request[0].n == 1


class Choice(msgspec.Struct):
    """The output of one sibling. ``reason`` is None if it has not ended."""

    tokens: array[int] = msgspec.field(default_factory=lambda: array("i"))
    logprobs: array[float] = msgspec.field(default_factory=lambda: array("d"))
    top_ids: array[int] = msgspec.field(default_factory=lambda: array("i"))
    top_logprobs: array[float] = msgspec.field(default_factory=lambda: array("d"))
    reason: str | None = None


class Answer(msgspec.Struct):
    """The output of a request: choices by job and sibling, scored prompts by job.

    It does not include how much was cached.
    """

    choices: dict[Place, Choice] = msgspec.field(default_factory=dict)
    scored: dict[int, ScoredPrompt | None] = msgspec.field(default_factory=dict)

    def without(self, request: Request, places: AbstractSet[Place]) -> Answer:
        """Returns the answer without the aborted sequences at ``places``."""
        gone = {
            number
            for number, job in enumerate(request)
            if all((number, sibling) in places for sibling in range(job.n))
        }
        return Answer(
            {place: choice for place, choice in self.choices.items() if place not in places},
            {number: scored for number, scored in self.scored.items() if number not in gone},
        )

    def take(self, event: Event) -> None:
        """Add an event."""
        match event:
            case Prefilled(job, _, _, scored):
                assert job not in self.scored, "a prompt is announced once"
                self.scored[job] = scored
            case Sampled(job, seq, tokens, logprobs, top_ids, top_logprobs):
                choice = self.choices.setdefault((job, seq), Choice())
                assert choice.reason is None, "nothing comes after the end"
                choice.tokens += tokens
                choice.logprobs += logprobs
                choice.top_ids += top_ids
                choice.top_logprobs += top_logprobs
            case Ended(job, seq, reason, completion_tokens):
                choice = self.choices.setdefault((job, seq), Choice())
                assert completion_tokens == len(choice.tokens), "all tokens are counted"
                choice.reason = reason


def stretched(ids: Sequence[int], times: int) -> tuple[int, ...]:
    """Returns ``times`` tokens for each id. Common prefixes stay as long, times ``times``."""
    return tuple(
        id_ if not more else _STRETCH_IDS[(31 * id_ + 17 * more) % len(_STRETCH_IDS)]
        for id_ in ids
        for more in range(times)
    )


class Server:
    """A model with slots and a line, stepped by hand. ``answers`` maps keys of requests to answers.

    Prompts are ``stretch`` times as long as in the requests.
    """

    def __init__(self, opened: OpenModel, *, stretch: int = 1) -> None:
        self.runner = opened.runner
        self._stretch = stretch
        self.scheduler = Scheduler(
            self.runner,
            opened.tokenizer.end_ids,
            score_budget_bytes=_SCORE_BYTES,
            checkpoint_budget_bytes=_CHECKPOINT_BYTES,
        )
        self._sampler = self.runner.sampler
        self.answers: dict[int, Answer] = {}

    def send(self, request: Request) -> int:
        """Put a request in line, and return its key."""
        key = len(self.answers)
        self.answers[key] = Answer()
        self.scheduler.add(key, [self._stretched(job) for job in request])
        return key

    def step(self, budget: int = BUDGET, *, row_share: float | None = None) -> None:
        """Compute one step. Raises the error of a failed request; no test expects one."""
        step = self.scheduler.schedule(budget, row_share=row_share)
        if step is not None:
            self.runner.apply(step.instructions)
            rows = self.runner.decode(step.batch)
            self.scheduler.update(step, evaluate(step, rows, self._sampler))
        self.scheduler.check()
        for _, error in self.scheduler.take_failures():
            raise error
        for key, event in self.scheduler.take_events():
            self.answers[key].take(event)

    def run(self, budget: int = BUDGET, *, row_share: float | None = None) -> None:
        """Step until all requests have ended."""
        for _ in range(_MOST_STEPS):
            if self.scheduler.idle:
                return
            self.step(budget, row_share=row_share)
        raise AssertionError("requests do not end")

    def ask(self, request: Request) -> Answer:
        """Returns the answer to a request that is alone."""
        key = self.send(request)
        self.run()
        return self.answers[key]

    def _stretched(self, job: Job) -> Job:
        ids = stretched(job.prompt_ids, self._stretch)
        return msgspec.structs.replace(job, prompt_ids=ids)


class Model:
    """A model file, and the answers of fresh servers. Close it at the end.

    All prompts are ``stretch`` times as long, for windows larger than ``WINDOW``. ``given`` are the
    options that do not say how much memory there is.
    """

    def __init__(
        self, path: Path, *, stretch: int = 1, given: EngineOptions = _TWO_THREADS
    ) -> None:
        self._given = given
        self.path = path
        self.stretch = stretch
        self._ctx: int | None = None
        self._token_bytes = 0
        self.loaded: Loaded = load(path, self.options(SLOTS))
        self._ctx = min(stretch * CONTEXT, self.loaded.model.context_tokens)
        self._token_bytes = model_memory(self.loaded.model, _SMALL).token
        self._fresh: dict[Request, Answer] = {}

    def close(self) -> None:
        """Free the model. The code that opened a server closes it."""
        self.loaded.model.close()

    @property
    def batch_invariant(self) -> bool:
        """Whether the probe confirmed batch invariance."""
        return self.loaded.batch_invariant

    def options(self, slots: int, contexts: int = CONTEXTS) -> EngineOptions:
        """Returns the options with which the model is opened."""
        kv_bytes = contexts * (self._ctx or 0) * self._token_bytes
        return msgspec.structs.replace(
            self._given, ctx=self._ctx, slots=slots, kv_bytes=kv_bytes or None
        )

    def open(self, slots: int, contexts: int = CONTEXTS) -> OpenModel:
        """Open the file again, with the kernels that the first load chose."""
        first = self.loaded.model
        model = LlamaModel(self.path, repack=first.repack, offload=first.offload)
        loaded = msgspec.structs.replace(self.loaded, model=model)
        name, options = self.path.stem, self.options(slots, contexts)
        return open_model(loaded, digest="0" * 64, name=name, options=options)

    @contextmanager
    def server(self, slots: int = SLOTS, contexts: int = CONTEXTS) -> Iterator[Server]:
        """A fresh server; if its memory is blocks, ``contexts`` whole contexts fit into it."""
        opened = self.open(slots, contexts)
        try:
            yield Server(opened, stretch=self.stretch)
        finally:
            opened.runner.close()

    def fresh(self, request: Request) -> Answer:
        """Returns a fresh server's answer to a request that is its first and only one."""
        if request not in self._fresh:
            with self.server() as server:
                self._fresh[request] = server.ask(request)
        return self._fresh[request]


def difference(found: Answer, expected: Answer) -> str | None:
    """Returns in a line where two answers differ; None if they are equal bit for bit."""
    if found == expected:
        return None
    for job, scored in expected.scored.items():
        if found.scored.get(job) != scored:
            return f"prompt {job}: other scores{_nats(_scores(found, job), _scores(expected, job))}"
    for place, choice in expected.choices.items():
        mine = found.choices.get(place, Choice())
        if mine == choice:
            continue
        same = _common(mine.tokens, choice.tokens)
        until = slice(0, min(same + 1, len(mine.logprobs), len(choice.logprobs)))
        where = f"choice {place}: {same} of {len(choice.tokens)} tokens agree"
        return where + _nats(mine.logprobs[until], choice.logprobs[until])
    return "the answer has choices or prompts that were not asked for"


def nats_apart(found: Answer, expected: Answer) -> float:
    """Returns the largest difference of log-probability of the same token, in nats."""
    worst = 0.0
    for job in expected.scored:
        worst = max(worst, _apart(_scores(found, job), _scores(expected, job)))
    for place, choice in expected.choices.items():
        mine = found.choices.get(place, Choice())
        same = _common(mine.tokens, choice.tokens)
        worst = max(worst, _apart(mine.logprobs[:same], choice.logprobs[:same]))
    return worst


def _scores(answer: Answer, job: int) -> array[float]:
    scored = answer.scored.get(job)
    return scored.logprobs if scored else array("d")


def _common(a: array[int], b: array[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _apart(a: array[float], b: array[float]) -> float:
    return max((abs(x - y) for x, y in zip(a, b, strict=False)), default=0.0)


def _nats(a: array[float], b: array[float]) -> str:
    return f", log-probabilities up to {_apart(a, b):.2g} apart"
