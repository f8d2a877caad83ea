"""The scheduler as a state machine on the toy runner: any interleaving gives equal answers."""

from __future__ import annotations

from array import array
from typing import Any

import msgspec
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from afterword.core.draws import mix64, uniform
from afterword.core.job import (
    Constraint,
    Ended,
    Event,
    Job,
    OutputGrammar,
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
from afterword.engine.batching.sequence import Sequence
from afterword.engine.batching.step import Step
from afterword.engine.changes import Bias
from afterword.engine.history import History
from afterword.engine.row_query import GrammarError
from afterword.engine.sampler import Sampler
from afterword.engine.toy import ToyRunner, ToyTokenizer
from support.drawing import draw_token
from support.examples import examples

TOKENIZER = ToyTokenizer()
VOCABULARY = len(TOKENIZER.pieces)
END_IDS = np.array(sorted(TOKENIZER.end_ids))
CONTEXT = 64
REFERENCE = ToyRunner(VOCABULARY, end_ids=sorted(TOKENIZER.end_ids))

Answer = dict[int, tuple[list[int], list[float], list[tuple[int, float]], str | None]]
"""By sibling: tokens, log-probabilities, likeliest tokens, and how it ends; None: by an error."""


class InTurn:
    """A compiled grammar: odd and even tokens in turn, and an error behind ``most`` of them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.tokens = 0

    def follow(self) -> InTurn:
        return InTurn(self.most)

    def mask(self) -> Any:
        if self.tokens == self.most:
            raise GrammarError("enough")
        return np.arange(VOCABULARY) % 2 != self.tokens % 2

    def accept(self, token: int) -> None:
        assert token % 2 != self.tokens % 2
        self.tokens += 1

    def valid(self, tokens: list[int]) -> int:
        places = enumerate(tokens, self.tokens)
        return next((at for at, (n, t) in enumerate(places) if t % 2 == n % 2), len(tokens))


def in_turn(most: int) -> Constraint:
    return Constraint(OutputGrammar("grammar", ""), InTurn(most))


def job_strategy() -> st.SearchStrategy[Job]:
    def build(
        head: int, tail: list[int], n: int, room: int, t: float, seed: int, lp: int | None,
        plp: int | None, sampling: SamplingParams, few: int, scored: tuple[int, ...], ranks: bool,
        stops: tuple[int, ...], scope: str, grammar: Constraint | None,
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
            cache_scope=scope,
            constraint=grammar,
        )

    return st.builds(
        build,
        st.integers(0, 6),
        st.lists(st.integers(1, 3), min_size=1, max_size=20),
        st.sampled_from((1, 1, 2, 3, 7)),
        st.sampled_from((0, 0, 1, 5, 30, CONTEXT)),
        st.sampled_from((0.0, 1.0)),
        st.integers(0, 3),
        st.sampled_from((None, 0, 2)),
        st.sampled_from((None, 0, 3)),
        st.sampled_from(SAMPLING),
        st.sampled_from((0, 1, 2, 3)),
        st.sampled_from(((), (), (2, 40))),
        st.booleans(),
        st.sampled_from(((), (), (3,))),
        st.sampled_from(("", "", "", "a")),
        st.sampled_from((None, None, None, in_turn(CONTEXT), in_turn(4))),
    )


SAMPLING = (
    SamplingParams(),
    SamplingParams(presence_penalty=1.0, min_tokens=3),
    SamplingParams(ignore_eos=True),
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
        grammar = None if job.constraint is None else job.constraint.compiled.follow()
        reason: str | None = "length"
        while len(tokens) < job.max_tokens:
            row = row_after([*job.prompt_ids, *tokens])
            allowed = job.sampling.allowed_ids
            try:
                mask = None if grammar is None else grammar.mask()
            except GrammarError:
                reason = None
                break
            token = draw_token(
                sampler,
                row,
                job.sampling,
                uniform(job.seed, sibling, len(tokens)),
                second=uniform(job.seed, sibling, len(tokens), second=True),
                history=history,
                bias=Bias.of(job.sampling.logit_bias),
                allowed=np.array(allowed) if allowed else None,
                mask=mask,
                banned=END_IDS if len(tokens) < job.sampling.min_tokens else None,
            )
            if grammar is not None:
                grammar.accept(token)
            tokens.append(token)
            history.accept(token)
            if job.logprobs is not None:
                logprobs.append(float(row[token]) - sampler.normaliser(row))
                tops.extend(zip(*entries(row, job, job.logprobs), strict=True))
            ends = token in TOKENIZER.end_ids and not job.sampling.ignore_eos
            if ends or token in job.stop_ids:
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
        sharing=st.sampled_from(("cells", "cells", "checkpoints", "none")),
        checkpoint_bytes=st.sampled_from((0, 300, 100_000)),
        blocks=st.sampled_from((0, 16, 17, 40, 300)),
        least=st.sampled_from((1, 4)),
        share=st.sampled_from((None, 0.0, 0.3)),
    )
    def begin(
        self,
        slots: int,
        batch: int,
        score_bytes: int,
        sharing: PrefixSharing,
        checkpoint_bytes: int,
        blocks: int,
        least: int,
        share: float | None,
    ) -> None:
        if sharing == "checkpoints":
            blocks = 0
        self.runner = ToyRunner(
            VOCABULARY, slots=slots + blocks, context_tokens=CONTEXT, max_batch_tokens=batch,
            end_ids=sorted(TOKENIZER.end_ids), sharing=sharing, sequences=slots,
            blocks=blocks,
        )  # fmt: skip
        self.runner.least_shared_tokens = least
        self.scheduler = Scheduler(
            self.runner, TOKENIZER.end_ids,
            score_budget_bytes=score_bytes, checkpoint_budget_bytes=checkpoint_bytes,
        )  # fmt: skip
        self.sampler = Sampler(VOCABULARY)
        self.jobs: dict[int, list[Job]] = {}
        self.events: dict[int, list[Event]] = {}
        self.failed: set[int] = set()
        # How many events a request had when it, or one of its sequences, was taken away.
        self.gone: dict[int, int] = {}
        self.aborted: dict[tuple[int, int, int], int] = {}
        self.next_key = 0
        self.row_share = share

    @rule(share=st.sampled_from((None, 0.0, 0.3, 0.9)))
    def drafts(self, share: float | None) -> None:
        self.row_share = share

    @rule(jobs=st.lists(job_strategy(), min_size=1, max_size=3))
    def add(self, jobs: list[Job]) -> None:
        self.scheduler.add(self.next_key, jobs)
        self.jobs[self.next_key] = jobs
        self.events[self.next_key] = []
        self.next_key += 1

    @rule(back=st.integers(0, 4))
    def abort_request(self, back: int) -> None:
        """Abort one of the last requests, or one that was never there."""
        key = self.next_key - back
        self.scheduler.abort_request(key)
        if key in self.jobs:
            self.gone.setdefault(key, len(self.events[key]))

    @rule(back=st.integers(0, 4), job=st.integers(0, 2), sibling=st.integers(0, 7))
    def abort(self, back: int, job: int, sibling: int) -> None:
        self._abort(self.next_key - back, job, sibling)

    @rule(at=st.integers(0, 9))
    def abort_preempted(self, at: int) -> None:
        requests = self.scheduler._requests.values()
        preempted = [one for request in requests for one in request.head if one.generated]
        if preempted:
            self._abort_sequence(preempted[at % len(preempted)])

    @rule(at=st.integers(0, 9))
    def abort_awaited(self, at: int) -> None:
        """Abort a sequence whose prefix others wait for, or one that waits."""
        waits = self.scheduler._waits
        found = [*(wait.owner for wait in waits.values()), *waits]
        if found:
            self._abort_sequence(found[at % len(found)])

    def _abort_sequence(self, sequence: Sequence) -> None:
        self._abort(sequence.request.key, sequence.prompt.index, sequence.sibling)

    def _abort(self, key: int, job: int, sibling: int) -> None:
        self.scheduler.abort(key, job, sibling)
        if key in self.jobs:
            self.aborted.setdefault((key, job, sibling), len(self.events[key]))

    @rule(budget=st.integers(1, 64), steps=st.integers(1, 10))
    def steps(self, budget: int, steps: int) -> None:
        for _ in range(steps):
            self.one_step(budget)

    @rule(budget=st.integers(1, 64), applied=st.integers(0, 9))
    def failing_step(self, budget: int, applied: int) -> None:
        """A step fails in one of its instructions, or while it is decoded."""
        step = self.schedule(budget)
        if step is not None:
            self.runner.apply(step.instructions[:applied])
            if applied > len(step.instructions):
                self.runner.decode(step.batch)
            self.gone.update((key, len(self.events[key])) for key in self.scheduler.fail(step))
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
        self.failed.update(key for key, _ in self.scheduler.take_failures())

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.drain()
        # All memory is there again for a request that needs the whole context.
        whole = Job(
            prompt_ids=tuple(range(1, 40)), n=2, max_tokens=CONTEXT - 39, seed=1,
            sampling=SamplingParams(ignore_eos=True),
        )  # fmt: skip
        self.add([whole])
        self.drain()
        for key, jobs in self.jobs.items():
            for index, job in enumerate(jobs):
                self.compare(key, index, job)
        events = [event for mine in self.events.values() for event in mine]
        drawn = sum(len(event.tokens) for event in events if isinstance(event, Sampled))
        assert self.scheduler.counters.generated_tokens == drawn

    def drain(self) -> None:
        for _ in range(20_000):
            if self.scheduler.idle:
                break
            self.one_step(16)
        assert self.scheduler.idle
        assert self.scheduler.running == 0
        assert self.scheduler.waiting == 0
        assert not self.scheduler._waits

    def compare(self, key: int, index: int, job: Job) -> None:
        known = self.events[key][: self.gone.get(key)]
        assert known == self.events[key], "an aborted request has no more events"
        over = key in self.gone or key in self.failed
        mine = [event for event in known if event.job == index]
        scored, answer = alone(job)
        left = 0
        for sibling, (tokens, logprobs, tops, reason) in answer.items():
            own = [e for e in mine if isinstance(e, Sampled) and e.seq == sibling]
            got = [t for e in own for t in e.tokens]
            values = [v for e in own for v in e.logprobs]
            got_tops = [top for e in own for top in zip(e.top_ids, e.top_logprobs, strict=True)]
            ends = [e for e in mine if isinstance(e, Ended) and e.seq == sibling]
            assert got == tokens[: len(got)]
            assert values == logprobs[: len(values)]
            assert got_tops == tops[: len(got_tops)]
            last = self.aborted.get((key, index, sibling))
            if last is not None:
                later = self.events[key][last:]
                assert not any(
                    isinstance(e, Sampled | Ended) and (e.job, e.seq) == (index, sibling)
                    for e in later
                )
            if over or last is not None:
                continue
            left += 1
            assert reason is not None, "an error ends the request"
            assert (len(got), len(values), len(got_tops)) == (len(tokens), len(logprobs), len(tops))
            assert [(e.reason, e.completion_tokens) for e in ends] == [(reason, len(tokens))]
        heads = [e for e in mine if isinstance(e, Prefilled)]
        assert len(heads) == 1 if left or mine else not heads
        for head in heads:
            assert mine[0] is head
            assert head.scored == scored
            assert 0 <= head.cached_tokens <= len(job.prompt_ids)
            assert not head.cached_tokens or self.runner.sharing != "none"
        if key in self.failed:
            assert any(job.constraint for job in self.jobs[key])


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=examples(400), stateful_step_count=30, deadline=None)
