"""The scheduler as a state machine on the toy runner: any interleaving gives equal answers."""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

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
    FinishReason,
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
CONTEXT = 64
REFERENCE = ToyRunner(VOCABULARY, end_ids=sorted(TOKENIZER.end_ids))


class Answer(NamedTuple):
    """What a sequence gives, and how it ends; None if by an error."""

    tokens: list[int]
    logprobs: list[float]
    tops: list[tuple[int, float]]
    reason: FinishReason | None


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


def row_after(tokens: list[int]) -> Row:
    history = 1
    for token in tokens:
        history = mix64(history ^ (token + 1))
    return REFERENCE.row(history)


def scored_alone(job: Job) -> ScoredPrompt | None:
    """Returns the scores that a prompt must have."""
    if job.prompt_logprobs is None:
        return None
    sampler = Sampler(VOCABULARY)
    scored = ScoredPrompt(array("d"), array("i"), array("d"))
    for at in range(1, len(job.prompt_ids)):
        row = row_after(list(job.prompt_ids[:at]))
        token = job.prompt_ids[at]
        scored.logprobs.append(float(row[token]) - sampler.normaliser(row))
        ids, values = entries(row, job, job.prompt_logprobs)
        scored.top_ids.extend(ids)
        scored.top_logprobs.extend(values)
        if job.prompt_ranks:
            scored.ranks.append(int((row >= row[token]).sum()))
    return scored


def alone(job: Job, sibling: int) -> Answer:
    """Returns what a sequence must give, computed by itself without cache and batch."""
    sampler, sampling = Sampler(VOCABULARY), job.sampling
    banned = np.array(sorted(TOKENIZER.end_ids.union(job.stop_ids)))
    tokens: list[int] = []
    logprobs: list[float] = []
    tops: list[tuple[int, float]] = []
    history = History(np.array(job.prompt_ids, np.int32), sampling)
    grammar = None if job.constraint is None else job.constraint.compiled.follow()
    while len(tokens) < job.max_tokens:
        row = row_after([*job.prompt_ids, *tokens])
        if grammar is not None and grammar.tokens == grammar.most:
            return Answer(tokens, logprobs, tops, None)
        token = draw_token(
            sampler,
            row,
            sampling,
            uniform(job.seed, sibling, len(tokens)),
            second=uniform(job.seed, sibling, len(tokens), second=True),
            history=history,
            bias=Bias.of(sampling.logit_bias),
            allowed=np.array(sampling.allowed_ids) if sampling.allowed_ids else None,
            mask=None if grammar is None else grammar.mask(),
            banned=banned if len(tokens) < sampling.min_tokens else None,
        )
        if grammar is not None:
            grammar.accept(token)
        tokens.append(token)
        history.accept(token)
        if job.logprobs is not None:
            logprobs.append(float(row[token]) - sampler.normaliser(row))
            tops.extend(zip(*entries(row, job, job.logprobs), strict=True))
        ends = token in TOKENIZER.end_ids and not sampling.ignore_eos
        if ends or token in job.stop_ids:
            return Answer(tokens, logprobs, tops, "stop")
    return Answer(tokens, logprobs, tops, "length")


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
        slots=st.integers(1, 7),
        batch=st.sampled_from((7, 8, 64)),
        score_bytes=st.sampled_from((0, 5_000, 100_000)),
        sharing=st.sampled_from(("cells", "cells", "cells", "checkpoints", "none")),
        checkpoint_bytes=st.sampled_from((0, 300, 100_000)),
        blocks=st.sampled_from((16, 17, 24, 70, 0)),
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

    @rule(
        requests=st.integers(1, 3),
        n=st.integers(1, 4),
        tokens=st.integers(15, 50),
        few=st.integers(0, 3),
        temperature=st.sampled_from((0.0, 1.0)),
    )
    def crowd(self, requests: int, n: int, tokens: int, few: int, temperature: float) -> None:
        """Add sequences that together may want more memory than there is."""
        for number in range(requests):
            sampling = SamplingParams(
                ignore_eos=True,
                temperature=temperature,
                logit_bias=tuple((i, 100.0) for i in range(1, few + 1)),
            )
            prompt = (10 + number, *([1, 2, 3] * 3))
            self.add([Job(prompt_ids=prompt, n=n, max_tokens=tokens, sampling=sampling, seed=7)])

    @rule(how=st.sampled_from((1, 2, 3, 4)), at=st.integers(0, 9))
    def abort_any(self, how: int, at: int) -> None:
        """Abort a request, a sequence, a preempted one, or one that waits or is awaited.

        Some were never there, or have ended.
        """
        key = self.next_key - at // 2
        if how == 1:
            self._abort_request(key)
        elif how == 2:
            self._abort(key, at % 2, at % 3)
        found: list[Sequence] = []
        if how == 3:
            requests = self.scheduler._requests.values()
            found = [one for request in requests for one in request.head if one.generated]
        elif how == 4:
            waits = self.scheduler._waits
            found = [*(wait.owner for wait in waits.values()), *waits]
        if found:
            one = found[at % len(found)]
            self._abort(one.request.key, one.prompt.index, one.sibling)

    def _abort_request(self, key: int) -> None:
        self.scheduler.abort_request(key)
        if key in self.jobs:
            self.gone.setdefault(key, len(self.events[key]))

    def _abort(self, key: int, job: int, sibling: int) -> None:
        self.scheduler.abort(key, job, sibling)
        if key in self.jobs:
            self.aborted.setdefault((key, job, sibling), len(self.events[key]))

    @rule(budget=st.integers(1, 64), steps=st.integers(1, 30))
    def steps(self, budget: int, steps: int) -> None:
        for _ in range(steps):
            self.one_step(budget)

    @rule(budget=st.integers(1, 64), applied=st.integers(0, 9), fails=st.sampled_from((0, 0, 1)))
    def step(self, budget: int, applied: int, fails: int) -> None:
        """Do a step. Some fail, in one of their instructions or while they are decoded."""
        if not fails:
            self.one_step(budget)
            return
        step = self.schedule(budget)
        if step is not None:
            self.runner.apply(step.instructions[:applied])
            if applied > len(step.instructions):
                self.runner.decode(step.batch)
            # Sequences that needed no slot have ended before.
            self.collect()
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
        everything = self.events[key]
        assert everything == everything[: self.gone.get(key)], "an abort is silent"
        mine = [event for event in everything if event.job == index]
        left = 0
        for sibling in range(job.n):
            answer = alone(job, sibling)
            own = [e for e in mine if isinstance(e, Sampled) and e.seq == sibling]
            got = [t for e in own for t in e.tokens]
            values = [v for e in own for v in e.logprobs]
            tops = [top for e in own for top in zip(e.top_ids, e.top_logprobs, strict=True)]
            assert got == answer.tokens[: len(got)]
            assert values == answer.logprobs[: len(values)]
            assert tops == answer.tops[: len(tops)]
            last = self.aborted.get((key, index, sibling))
            if last is not None:
                later = (e for e in everything[last:] if isinstance(e, Sampled | Ended))
                assert (index, sibling) not in ((e.job, e.seq) for e in later)
            elif key not in self.gone and key not in self.failed:
                left += 1
                assert answer.reason is not None, "an error ends the request"
                assert (got, values, tops) == answer[:3]
                ends = [e for e in mine if isinstance(e, Ended) and e.seq == sibling]
                assert ends == [Ended(index, sibling, answer.reason, len(got))]
                assert ends[0] == next(e for e in mine[::-1] if getattr(e, "seq", None) == sibling)
        heads = [e for e in mine if isinstance(e, Prefilled)]
        assert len(heads) == (1 if left or mine else 0)
        for head in heads:
            assert mine[0] is head
            assert head.scored == scored_alone(job)
            assert 0 <= head.cached_tokens <= len(job.prompt_ids)
            assert not head.cached_tokens or self.runner.sharing != "none"
        if key in self.failed:
            assert any(job.constraint for job in self.jobs[key])


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=examples(200), stateful_step_count=30, deadline=None)
