"""The scheduler as a state machine on the toy runner: any interleaving gives equal answers."""

from __future__ import annotations

from array import array

import msgspec
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from afterword.core.draws import mix64, uniform
from afterword.core.job import (
    Ended,
    Event,
    Job,
    Prefilled,
    Repetition,
    Sampled,
    SamplingParams,
    ScoredPrompt,
)
from afterword.core.protocols import PrefixSharing
from afterword.engine.arrays import Row
from afterword.engine.batching.outcome import evaluate
from afterword.engine.batching.scheduler import Scheduler
from afterword.engine.batching.step import Step
from afterword.engine.changes import Bias
from afterword.engine.history import History
from afterword.engine.sampler import Sampler
from afterword.engine.toy import ToyRunner, ToyTokenizer
from support.drawing import draw_token
from support.examples import examples

TOKENIZER = ToyTokenizer()
VOCABULARY = len(TOKENIZER.pieces)
CONTEXT = 64
REFERENCE = ToyRunner(VOCABULARY, end_ids=sorted(TOKENIZER.end_ids))

Answer = dict[int, tuple[list[int], list[float], list[tuple[int, float]], str | None]]


def job_strategy() -> st.SearchStrategy[Job]:
    def build(
        head: int, tail: list[int], n: int, room: int, t: float, seed: int, lp: int | None,
        plp: int | None, sampling: SamplingParams, few: int, scored: tuple[int, ...], ranks: bool,
        stops: tuple[int, ...],
    ) -> Job:  # fmt: skip
        # There are few heads and few tokens, so that prefixes are shared often.
        prompt = tuple(([1, 2, 3] * 12)[: head * 6] + tail)
        return Job(
            prompt_ids=prompt,
            n=n,
            max_tokens=min(room, CONTEXT - len(prompt)),
            sampling=msgspec.structs.replace(
                sampling,
                temperature=t,
                top_p=0.95,
                # With few tokens to choose from, texts repeat, and some drafts are accepted.
                logit_bias=tuple((i, 100.0) for i in range(1, few + 1)),
            ),
            seed=seed,
            logprobs=lp,
            prompt_logprobs=plp,
            prompt_ranks=ranks and plp is not None,
            scored_ids=scored,
            stop_ids=stops,
            warm=bool(seed % 2),
        )

    return st.builds(
        build,
        st.integers(0, 6),
        st.lists(st.integers(1, 3), min_size=1, max_size=20),
        st.integers(1, 3),
        st.sampled_from((0, 0, 1, 5, 30)),
        st.sampled_from((0.0, 1.0)),
        st.integers(0, 3),
        st.sampled_from((None, 0, 2)),
        st.sampled_from((None, 0, 3)),
        st.sampled_from(SAMPLING),
        st.sampled_from((0, 1, 2, 3)),
        st.sampled_from(((), (), (2, 40))),
        st.booleans(),
        st.sampled_from(((), (), (3,))),
    )


SAMPLING = (
    SamplingParams(),
    SamplingParams(presence_penalty=1.0),
    SamplingParams(repetition_penalty=1.3, typical_p=0.8),
    SamplingParams(xtc_probability=0.6, xtc_threshold=0.05, allowed_ids=(1, 2, 3, 5, 8)),
    SamplingParams(
        repetition=Repetition(
            multiplier=0.8, base=1.75, allowed_length=2, window=20, breakers={5: ((),)}
        )
    ),
)


def alone(job: Job) -> tuple[ScoredPrompt | None, Answer]:
    """Returns what a job must give, computed one sequence at a time without cache and batch."""
    sampler = Sampler(VOCABULARY)

    def row_after(tokens: list[int]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        history = 1
        for token in tokens:
            history = mix64(history ^ (token + 1))
        return REFERENCE.row(history)

    scored = None
    if job.prompt_logprobs is not None:
        scored = ScoredPrompt(array("d"), array("i"), array("d"))
        for at in range(1, len(job.prompt_ids)):
            row = row_after(list(job.prompt_ids[:at]))
            normaliser = sampler.normaliser(row)
            token = job.prompt_ids[at]
            scored.logprobs.append(float(row[token]) - normaliser)
            ids, values = entries(row, job, job.prompt_logprobs)
            scored.top_ids.extend(ids)
            scored.top_logprobs.extend(values)
            if job.prompt_ranks:
                scored.ranks.append(int((row >= row[token]).sum()))
    answer: Answer = {}
    for sibling in range(job.n):
        tokens: list[int] = []
        logprobs: list[float] = []
        tops: list[tuple[int, float]] = []
        history = History(np.array(job.prompt_ids, np.int32), job.sampling)
        reason = "length"
        while len(tokens) < job.max_tokens:
            row = row_after([*job.prompt_ids, *tokens])
            allowed = job.sampling.allowed_ids
            token = draw_token(
                sampler,
                row,
                job.sampling,
                uniform(job.seed, sibling, len(tokens)),
                second=uniform(job.seed, sibling, len(tokens), second=True),
                history=history,
                bias=Bias.of(job.sampling.logit_bias),
                allowed=np.array(allowed) if allowed else None,
            )
            tokens.append(token)
            history.accept(token)
            if job.logprobs is not None:
                logprobs.append(float(row[token]) - sampler.normaliser(row))
                tops.extend(zip(*entries(row, job, job.logprobs), strict=True))
            if token in TOKENIZER.end_ids or token in job.stop_ids:
                reason = "stop"
                break
        answer[sibling] = (tokens, logprobs, tops, reason)
    return scored, answer


def entries(row: Row, job: Job, k: int) -> tuple[list[int], list[float]]:
    """Returns the k likeliest tokens of a row and the scored ones, with log-probabilities."""
    sampler = Sampler(VOCABULARY)
    top = sampler.top(row, k).tolist()
    ids = [*top, *(-1 if i in top else i for i in job.scored_ids)]
    normaliser = sampler.normaliser(row)
    return ids, [float(row[i]) - normaliser for i in ids]


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, aborts, fails and steps in any order."""

    @initialize(
        slots=st.integers(1, 6),
        batch=st.sampled_from((6, 7, 64)),
        score_bytes=st.sampled_from((0, 5_000, 100_000)),
        sharing=st.sampled_from(("cells", "checkpoints", "none")),
        checkpoint_bytes=st.sampled_from((0, 300, 100_000)),
        blocks=st.sampled_from((0, 0, 16, 17, 40, 300)),
    )
    def begin(
        self,
        slots: int,
        batch: int,
        score_bytes: int,
        sharing: PrefixSharing,
        checkpoint_bytes: int,
        blocks: int,
    ) -> None:
        if sharing == "checkpoints":
            blocks = 0
        self.runner = ToyRunner(
            VOCABULARY, slots=slots + blocks, context_tokens=CONTEXT, max_batch_tokens=batch,
            end_ids=sorted(TOKENIZER.end_ids), sharing=sharing, sequences=slots,
            blocks=blocks,
        )  # fmt: skip
        self.scheduler = Scheduler(
            self.runner, TOKENIZER.end_ids,
            score_budget_bytes=score_bytes, checkpoint_budget_bytes=checkpoint_bytes,
        )  # fmt: skip
        self.sampler = Sampler(VOCABULARY)
        self.jobs: dict[int, list[Job]] = {}
        self.events: dict[int, list[Event]] = {}
        self.gone: set[int] = set()
        self.aborted: set[tuple[int, int, int]] = set()
        self.next_key = 0
        self.row_share: float | None = None

    @rule(share=st.sampled_from((None, 0.0, 0.3, 0.9)))
    def drafts(self, share: float | None) -> None:
        self.row_share = share

    @rule(jobs=st.lists(job_strategy(), min_size=1, max_size=3))
    def add(self, jobs: list[Job]) -> None:
        self.scheduler.add(self.next_key, jobs)
        self.jobs[self.next_key] = jobs
        self.events[self.next_key] = []
        self.next_key += 1

    @rule(key=st.integers(0, 20))
    def abort_request(self, key: int) -> None:
        self.scheduler.abort_request(key)
        self.gone.add(key)

    @rule(key=st.integers(0, 20), job=st.integers(0, 2), sibling=st.integers(0, 2))
    def abort(self, key: int, job: int, sibling: int) -> None:
        self.scheduler.abort(key, job, sibling)
        self.aborted.add((key, job, sibling))

    @rule(budget=st.integers(1, 64), steps=st.integers(1, 10))
    def steps(self, budget: int, steps: int) -> None:
        for _ in range(steps):
            self.one_step(budget)

    @rule(budget=st.integers(1, 64))
    def failing_step(self, budget: int) -> None:
        step = self.schedule(budget)
        if step is not None:
            self.runner.apply(step.instructions)
            self.gone.update(self.scheduler.fail(step))
        self.collect()

    def schedule(self, budget: int) -> Step | None:
        return self.scheduler.schedule(budget, row_share=self.row_share)

    def one_step(self, budget: int) -> None:
        step = self.schedule(budget)
        if step is not None:
            assert len(step.batch.tokens) <= self.runner.max_batch_tokens
            assert int(step.batch.wanted.sum()) <= self.runner.max_rows
            self.runner.apply(step.instructions)
            rows = self.runner.decode(step.batch)
            self.scheduler.update(step, evaluate(step, rows, self.sampler))
        self.collect()

    def collect(self) -> None:
        for key, event in self.scheduler.take_events():
            self.events[key].append(event)

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(20_000):
            if self.scheduler.idle:
                break
            self.one_step(16)
        assert self.scheduler.idle
        assert self.scheduler.running == 0
        assert self.scheduler.waiting == 0
        for key, jobs in self.jobs.items():
            if key not in self.gone:
                for index, job in enumerate(jobs):
                    self.compare(key, index, job)

    def compare(self, key: int, index: int, job: Job) -> None:
        mine = [event for event in self.events[key] if event.job == index]
        scored, answer = alone(job)
        aborted = {s for (k, j, s) in self.aborted if (k, j) == (key, index)}
        for sibling, (tokens, logprobs, tops, reason) in answer.items():
            own = [e for e in mine if isinstance(e, Sampled) and e.seq == sibling]
            got = [t for e in own for t in e.tokens]
            values = [v for e in own for v in e.logprobs]
            got_tops = [top for e in own for top in zip(e.top_ids, e.top_logprobs, strict=True)]
            ends = [e for e in mine if isinstance(e, Ended) and e.seq == sibling]
            if sibling in aborted:
                assert got == tokens[: len(got)]
                continue
            assert got == tokens
            assert values == logprobs
            assert got_tops == tops
            assert [(e.reason, e.completion_tokens) for e in ends] == [(reason, len(tokens))]
        heads = [e for e in mine if isinstance(e, Prefilled)]
        if len(aborted) < job.n:
            (head,) = heads
            assert mine[0] is head
            assert head.scored == scored
            assert 0 <= head.cached_tokens <= len(job.prompt_ids)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=examples(400), stateful_step_count=30, deadline=None)
