"""Shared prefixes are computed once, and no request is kept from its first slot."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from afterword.core.job import Ended, Event, Job, Prefilled, Sampled, SamplingParams
from afterword.core.protocols import PrefixSharing
from afterword.engine.batching.outcome import evaluate
from afterword.engine.batching.scheduler import Scheduler
from afterword.engine.sampler import Sampler
from afterword.engine.toy import ToyRunner, ToyTokenizer

TOKENIZER = ToyTokenizer()
VOCABULARY = len(TOKENIZER.pieces)


class Engine:
    """A scheduler on the toy runner, stepped by hand."""

    def __init__(
        self,
        *,
        slots: int,
        budget: int = 64,
        context: int = 256,
        sharing: PrefixSharing = "cells",
        checkpoint_bytes: int = 100_000,
    ) -> None:
        self.runner = ToyRunner(
            VOCABULARY,
            slots=slots,
            context_tokens=context,
            end_ids=sorted(TOKENIZER.end_ids),
            sharing=sharing,
        )
        self.scheduler = Scheduler(
            self.runner,
            TOKENIZER.end_ids,
            score_budget_bytes=100_000,
            checkpoint_budget_bytes=checkpoint_bytes,
        )
        self.sampler = Sampler(VOCABULARY)
        self.budget = budget
        self.events: list[tuple[int, Event]] = []

    def step(self) -> bool:
        step = self.scheduler.schedule(self.budget)
        if step is not None:
            self.runner.apply(step.instructions)
            rows = self.runner.decode(step.batch)
            self.scheduler.update(step, evaluate(step, rows, self.sampler))
        self.scheduler.check()
        self.events += self.scheduler.take_events()
        return not self.scheduler.idle

    def run(self, key: int, jobs: Sequence[Job]) -> list[Event]:
        self.scheduler.add(key, jobs)
        while self.step():
            pass
        return [event for owner, event in self.events if owner == key]

    @property
    def prefilled(self) -> int:
        return self.scheduler.counters.prefilled_tokens


def scored(*ids: int, max_tokens: int = 0, top: int = 1) -> Job:
    return Job(prompt_ids=ids, n=1, max_tokens=max_tokens, sampling=SamplingParams(temperature=0),
               seed=0, logprobs=top, prompt_logprobs=top)  # fmt: skip


def scores(events: Sequence[Event]) -> dict[int, object]:
    return {e.job: e.scored for e in events if isinstance(e, Prefilled)}


def alone(job: Job) -> object:
    return scores(Engine(slots=1).run(0, [job]))[0]


def test_four_answers_of_one_token_cost_as_much_as_one() -> None:
    head = tuple(range(3, 40))
    jobs = [scored(*head, answer) for answer in (70, 71, 72, 73)]
    engine = Engine(slots=4)
    found = scores(engine.run(0, jobs))
    assert engine.prefilled == len(head)
    assert found == {i: alone(job) for i, job in enumerate(jobs)}


def test_longer_answers_compute_no_token_of_the_prefix_again() -> None:
    head = tuple(range(3, 40))
    jobs = [scored(*head, answer, 90, 91, 92 + answer) for answer in (70, 71, 72, 73)]
    engine = Engine(slots=5)
    found = scores(engine.run(0, jobs))
    # No score needs the row of the last token of each.
    assert engine.prefilled == len(head) + 4 * 3
    assert found == {i: alone(job) for i, job in enumerate(jobs)}


def test_interleaved_contexts_are_computed_once_in_few_slots() -> None:
    heads = [tuple(range(start, start + 30)) for start in (10, 50, 90, 130, 170)]
    jobs = [scored(*head, 5, answer, 6) for answer in (70, 71, 72) for head in heads]
    engine = Engine(slots=3)
    found = scores(engine.run(0, jobs))
    # While all slots are taken, a waiting sequence cannot become a follower: one more row each.
    assert engine.prefilled <= len(heads) * (30 + 1 + 3 + 1)
    assert found == {i: alone(job) for i, job in enumerate(jobs)}


def test_scores_outlive_the_kv_of_their_prompt() -> None:
    engine = Engine(slots=1)
    first = engine.run(0, [scored(*range(3, 60))])
    engine.run(1, [scored(*range(100, 150))])
    before = engine.prefilled
    again = engine.run(2, [scored(*range(3, 60))])
    assert engine.prefilled == before
    assert scores(again) == scores(first)
    # A prompt with fewer top entries reuses them too; one with more is computed again.
    engine.run(3, [scored(*range(3, 60), top=0)])
    assert engine.prefilled == before
    assert scores(engine.run(4, [scored(*range(3, 60), top=4)]))[0] == alone(
        scored(*range(3, 60), top=4)
    )
    assert engine.prefilled > before


def test_a_running_prompt_shares_what_it_has_scored_so_far() -> None:
    engine = Engine(slots=2, budget=8)
    engine.scheduler.add(0, [scored(*range(3, 120))])
    for _ in range(6):
        engine.step()
    computed = engine.prefilled
    found = scores(engine.run(1, [scored(*range(3, 33), 200, 201)]))
    assert found[0] == alone(scored(*range(3, 33), 200, 201))
    assert computed < 117 - 1
    # 116 of the long prompt; of the short one the last shared token and the first one of its own.
    assert engine.prefilled <= 116 + 2


def sampled(n: int, *, seed: int) -> Job:
    return Job(prompt_ids=(seed + 1, 2, 3), n=n, max_tokens=200, seed=seed,
               sampling=SamplingParams(ignore_eos=True))  # fmt: skip


def test_many_choices_do_not_keep_a_newcomer_from_its_first_slot() -> None:
    engine = Engine(slots=6)
    engine.scheduler.add(0, [sampled(128, seed=1)])
    for _ in range(5):
        engine.step()
    assert engine.scheduler.running == 5
    engine.scheduler.add(1, [sampled(1, seed=2)])
    engine.step()
    assert engine.scheduler.running == 6
    assert any(owner == 1 for owner, _ in engine.events)


def test_a_thousand_prompts_alternate_with_other_requests() -> None:
    engine = Engine(slots=3)
    many = [Job(prompt_ids=(i % 200 + 1, i // 200 + 1), n=1, max_tokens=2, seed=i,
                sampling=SamplingParams(ignore_eos=True)) for i in range(1000)]  # fmt: skip
    engine.scheduler.add(0, many)
    engine.step()
    engine.scheduler.add(1, [sampled(1, seed=7)])
    for _ in range(4):
        engine.step()
    assert any(owner == 1 for owner, _ in engine.events)
    assert sum(isinstance(event, Ended) for owner, event in engine.events if owner == 0) < 20


def test_waiting_times_are_counted() -> None:
    engine = Engine(slots=1)
    scheduler = engine.scheduler
    scheduler.add(0, [sampled(1, seed=1)], now_s=1.0)
    scheduler.schedule(64, now_s=1.5)
    scheduler.add(1, [sampled(1, seed=2)], now_s=2.0)
    assert scheduler.waiting_since_s == 2.0
    scheduler.abort_request(0)
    scheduler.schedule(64, now_s=5.0)
    assert scheduler.waiting_since_s is None
    assert (scheduler.counters.started_requests, scheduler.counters.waited_s) == (2, 3.5)


def drawn(*ids: int, n: int = 1, max_tokens: int = 3) -> Job:
    return Job(prompt_ids=ids, n=n, max_tokens=max_tokens, sampling=SamplingParams(), seed=1)


def cached(engine: Engine, key: int, job: Job) -> int:
    (head,) = [event for event in engine.run(key, [job]) if isinstance(event, Prefilled)]
    return head.cached_tokens


def test_A5_what_siblings_share_did_not_come_from_the_cache() -> None:
    """A prompt of one token more than a chunk: the second sibling starts before the first draws."""
    engine = Engine(slots=4, budget=64)
    prompt = tuple(range(3, 68))
    assert cached(engine, 0, drawn(*prompt, n=2)) == 0
    assert engine.prefilled == len(prompt) + 1
    assert cached(engine, 1, drawn(*prompt, n=2)) == len(prompt) - 1
    assert engine.scheduler.counters.cached_tokens == len(prompt) - 1


def test_A5_a_prompt_of_one_token_has_no_scores_that_come_from_the_cache() -> None:
    engine = Engine(slots=2)
    assert [cached(engine, key, scored(7)) for key in range(2)] == [0, 0]
    assert [cached(engine, 2 + key, scored(7, 8)) for key in range(2)] == [0, 2]


HEADER, OTHER = tuple(range(3, 103)), (*range(3, 93), 200, *range(94, 103))
"""Two headers that differ near their ends."""


def test_questions_behind_a_header_continue_from_a_checkpoint_of_it() -> None:
    engine = Engine(slots=3, sharing="checkpoints")
    for first, header in ((0, HEADER), (10, OTHER)):
        found = [cached(engine, first + i, drawn(*header, 110 + i, 120)) for i in range(6)]
        # The second question shows where the header ends.
        assert found[2:] == [len(header)] * 4


def test_scored_questions_continue_from_a_checkpoint_too() -> None:
    engine = Engine(slots=3, sharing="checkpoints")
    for first, header in ((0, HEADER), (10, OTHER)):
        jobs = [scored(*header, 110 + i, 120, 130) for i in range(6)]
        found = [cached(engine, first + i, job) for i, job in enumerate(jobs)]
        assert found[2:] == [len(header) - 1] * 4


def test_siblings_continue_from_a_checkpoint_before_the_last_prompt_token() -> None:
    engine = Engine(slots=3, sharing="checkpoints")
    engine.run(0, [drawn(*HEADER, n=8)])
    assert engine.prefilled == len(HEADER) - 1 + 8


def test_an_array_computes_its_header_once() -> None:
    engine = Engine(slots=3, sharing="checkpoints")
    engine.run(0, [drawn(*HEADER, 110 + i, 120) for i in range(12)])
    assert engine.prefilled == len(HEADER) + 12 * 2


def test_a_prompt_that_continues_an_answer_continues_in_place() -> None:
    engine = Engine(slots=2, sharing="checkpoints")
    events = engine.run(0, [drawn(*HEADER, max_tokens=5)])
    answer = [token for e in events if isinstance(e, Sampled) for token in e.tokens]
    assert cached(engine, 1, drawn(*HEADER, *answer, 7)) == len(HEADER) + len(answer) - 1


def test_checkpoints_take_no_more_than_their_budget() -> None:
    # A toy checkpoint takes 100 bytes and one for each token, so there is room for two.
    engine = Engine(slots=2, sharing="checkpoints", checkpoint_bytes=2 * 200)
    headers = [tuple((i + at) % 250 for at in range(100)) for i in (3, 60, 120)]
    for key, header in enumerate(headers):
        for again in range(3):
            engine.run(10 * key + again, [drawn(*header, 110 + again, 120)])
        assert 0 < engine.scheduler.checkpoint_bytes <= 2 * 200
    # The least recently used one was evicted.
    assert cached(engine, 90, drawn(*headers[2], 119, 120)) == 100
    assert cached(engine, 91, drawn(*headers[1], 119, 120)) == 100
    assert cached(engine, 92, drawn(*headers[0], 119, 120)) == 0


def test_without_sharing_every_prompt_is_computed_completely() -> None:
    engine = Engine(slots=3, sharing="none")
    jobs = [scored(*HEADER, 110), drawn(*HEADER, 110), drawn(*HEADER, 110, n=3)]
    for key, job in enumerate([*jobs, *jobs]):
        assert cached(engine, key, job) == 0


def test_scopes_share_nothing_and_answer_the_same() -> None:
    """Whatever another scope has in memory, a prompt is computed as on a fresh server."""
    ids = tuple(range(1, 41))
    for sharing in ("cells", "checkpoints"):
        for scored in (None, 2):
            engine = Engine(slots=4, sharing=sharing)
            fresh: list[Event] = []
            for number, scope in enumerate(("a", "b", "", "a")):
                job = Job(
                    prompt_ids=ids,
                    n=1,
                    max_tokens=3,
                    sampling=SamplingParams(ignore_eos=True),
                    seed=1,
                    logprobs=1,
                    prompt_logprobs=scored,
                    cache_scope=scope,
                )
                before = len(engine.events)
                engine.run(number, [job])
                events = [event for _, event in engine.events[before:]]
                prefilled = next(event for event in events if isinstance(event, Prefilled))
                assert (prefilled.cached_tokens > 0) == (number == 3 and sharing == "cells")
                shown: list[Event] = [msgspec.structs.replace(prefilled, cached_tokens=0)]
                shown += [event for event in events if event is not prefilled]
                fresh = fresh or shown
                assert shown == fresh


def test_a_scope_does_not_wait_for_the_prefix_of_another() -> None:
    """Two prompts that begin together start together, each in a slot, and both compute all."""
    ids = tuple(range(1, 41))
    engine = Engine(slots=4, budget=16)
    for number, scope in enumerate(("a", "b", "b")):
        engine.scheduler.add(number, [_job(ids, scope)])
    engine.step()
    assert engine.scheduler.running == 2
    while engine.step():
        pass
    cached = {key: e.cached_tokens for key, e in engine.events if isinstance(e, Prefilled)}
    assert cached[0] == cached[1] == 0
    assert cached[2] == len(ids) - 1


def _job(ids: tuple[int, ...], scope: str) -> Job:
    return Job(
        prompt_ids=ids,
        n=1,
        max_tokens=1,
        sampling=SamplingParams(ignore_eos=True),
        seed=1,
        cache_scope=scope,
    )


def test_answers_without_a_slot_are_given_a_few_in_a_step() -> None:
    """So a request of thousands of them does not hold up the steps of others."""
    engine = Engine(slots=4)
    jobs = [
        Job(prompt_ids=(1,), n=128, max_tokens=0, sampling=SamplingParams(), seed=1)
        for _ in range(16)
    ]
    engine.scheduler.add(1, jobs)
    most, ended, going = 0, 0, True
    while going:
        before = len(engine.events)
        going = engine.step()
        most = max(most, len(engine.events) - before)
        ended += sum(isinstance(event, Ended) for _, event in engine.events[before:])
    assert ended == 2048
    assert most <= 2 * 128


def test_F5_a_warm_up_is_computed_once_and_found_later() -> None:
    engine = Engine(slots=2)
    ids = tuple(range(1, 30))
    warm = Job(prompt_ids=ids, n=1, max_tokens=0, sampling=SamplingParams(), seed=0, warm=True)
    counts = []
    for key in range(2):
        events = engine.run(key, [warm])
        counts.append(
            [(e.prompt_tokens, e.cached_tokens) for e in events if isinstance(e, Prefilled)]
        )
        assert [e for e in events if isinstance(e, Ended)] == [Ended(0, 0, "length", 0)]
    assert counts == [[(29, 0)], [(29, 28)]]
    cold = msgspec.structs.replace(warm, warm=False, prompt_ids=(7, 8, 9))
    engine.run(2, [cold])
    assert engine.prefilled == 28
