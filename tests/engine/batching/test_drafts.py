"""Prompt lookup: what it proposes, when it pays, and that the answer stays the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.core.job import Ended, Job, Sampled, SamplingParams
from afterword.engine.batching.drafts import StepCost, learn, look_up, make_guesses
from afterword.engine.batching.outcome import evaluate
from afterword.engine.batching.scheduler import Scheduler
from afterword.engine.batching.sequence import Guess, Request, Sequence
from afterword.engine.batching.slots import Slot
from afterword.engine.sampler import Sampler
from afterword.engine.toy import ToyRunner, ToyTokenizer

TOKENIZER = ToyTokenizer()
VOCABULARY = len(TOKENIZER.pieces)
ALWAYS, NEVER = 0.0, 1.0


def brute_force(tokens: list[int], most: int) -> list[int]:
    """Look at every earlier end, take the longest match of two to eight tokens, latest first."""
    best: tuple[int, int] = (1, 0)
    for after in range(2, len(tokens)):
        length = 0
        while length < min(8, after) and tokens[after - 1 - length] == tokens[-1 - length]:
            length += 1
        if length >= 2:
            best = max(best, (length, after))
    length, after = best
    return list(itertools.islice(itertools.cycle(tokens[after:]), most)) if length >= 2 else []


@given(st.lists(st.integers(0, 2), max_size=18), st.integers(1, 6))
def test_the_longest_and_latest_match_is_continued(tokens: list[int], most: int) -> None:
    # So few tokens that all candidates are looked at.
    assert look_up(np.array(tokens, np.int32), most).tolist() == brute_force(tokens, most)


def test_what_is_right_grows_likelier_and_ends_at_the_first_mistake() -> None:
    guess = Guess([5, 6, 7], likely=0.5)
    learn(guess, [5, 9])
    assert guess.likely == pytest.approx((0.5 * 0.85 + 0.15) * 0.85)
    assert guess.tokens == []
    learn(guess, [5])
    assert guess.likely == pytest.approx((0.5 * 0.85 + 0.15) * 0.85)


def test_a_price_is_learned_from_steps_with_and_without_drafts() -> None:
    assert StepCost().row_share == 0.5
    # A base of 8 ms and 2 ms a row: known from the first step with a draft, whatever its length.
    for rows in (8, 3, 17, 5):
        cost = StepCost()
        cost.observe(rows=1, drafted=0, drawn=1, took_s=0.010)
        assert cost.row_share == 0.5
        cost.observe(rows=rows, drafted=rows - 1, drawn=1, took_s=0.008 + 0.002 * rows)
        token_s = 0.85 * 0.010 + 0.15 * (0.008 + 0.002 * rows)
        assert cost.row_share == pytest.approx(0.002 / token_s)


def test_where_drafts_hold_a_token_is_cheaper_and_a_row_has_to_be_likelier() -> None:
    cost = StepCost()
    cost.observe(rows=1, drafted=0, drawn=1, took_s=0.010)
    for _ in range(200):
        cost.observe(rows=5, drafted=4, drawn=5, took_s=0.018)
    assert cost.row_share == pytest.approx(2 / (18 / 5))
    for _ in range(200):
        cost.observe(rows=5, drafted=4, drawn=1, took_s=0.018)
    assert cost.row_share == pytest.approx(2 / 18)


def test_a_price_of_several_sequences_is_that_of_one() -> None:
    cost = StepCost()
    cost.observe(rows=4, drafted=0, drawn=4, took_s=0.016)
    cost.observe(rows=8, drafted=4, drawn=6, took_s=0.024)
    assert cost.row_share == pytest.approx(0.002 / 0.004)


def test_rows_that_cost_nothing_are_always_worth_it() -> None:
    cost = StepCost()
    cost.observe(rows=1, drafted=0, drawn=1, took_s=0.010)
    cost.observe(rows=8, drafted=7, drawn=3, took_s=0.009)
    assert cost.row_share == 0


def a_sequence(ids: list[int], *, max_tokens: int, likely: float) -> Sequence:
    job = Job(prompt_ids=tuple(ids), n=1, max_tokens=max_tokens, sampling=SamplingParams(), seed=0)
    sequence = Request(0, [job], frozenset(), 0.0).look_ahead(1)[0]
    sequence.slot = Slot(0, 100)
    sequence.slot.tokens[: len(ids)] = ids
    sequence.guess.likely = likely
    return sequence


@pytest.mark.parametrize(
    ("likely", "row_share", "worth"),
    [(0.9, 0.5, 6), (0.5, 0.5, 0), (0.4, 0.5, 0), (0.99, 0.1, 16), (0.9, ALWAYS, 16)],
)
def test_a_draft_is_as_long_as_its_last_token_pays(
    likely: float, row_share: float, worth: int
) -> None:
    sequence = a_sequence(list(range(20)) * 2, max_tokens=50, likely=likely)
    assert make_guesses([sequence], row_share) == worth
    assert sequence.guess.tokens == list(range(16))


def test_nothing_is_drafted_beyond_what_may_come() -> None:
    sequence = a_sequence(list(range(20)) * 2, max_tokens=4, likely=0.9)
    assert make_guesses([sequence], ALWAYS) == 3


def test_all_sequences_get_what_the_least_promising_is_worth() -> None:
    one = a_sequence(list(range(20)) * 2, max_tokens=50, likely=0.9)
    other = a_sequence(list(range(20)), max_tokens=50, likely=0.9)
    assert make_guesses([one, other], ALWAYS) == 0


def run(job: Job, row_share: float | None) -> tuple[list[tuple[int, ...]], Scheduler]:
    runner = ToyRunner(
        VOCABULARY, slots=2, context_tokens=200, max_batch_tokens=64,
        end_ids=sorted(TOKENIZER.end_ids),
    )  # fmt: skip
    scheduler = Scheduler(runner, TOKENIZER.end_ids, score_budget_bytes=0)
    sampler = Sampler(VOCABULARY)
    scheduler.add(0, [job])
    events: list[tuple[int, ...]] = []
    while not scheduler.idle:
        step = scheduler.schedule(64, row_share=row_share)
        assert step is not None
        runner.apply(step.instructions)
        scheduler.update(step, evaluate(step, runner.decode(step.batch), sampler))
        scheduler.check()
        for _, event in scheduler.take_events():
            if isinstance(event, Sampled):
                events.append((event.seq, *event.tokens))
            elif isinstance(event, Ended):
                events.append((event.seq, -1, event.completion_tokens))
    return events, scheduler


def repetitive(few: int, temperature: float) -> Job:
    return Job(
        prompt_ids=(1, 2, 1, 2, 1),
        n=1,
        max_tokens=60,
        sampling=SamplingParams(
            temperature=temperature, logit_bias=tuple((i, 100.0) for i in range(1, few + 1))
        ),
        seed=7,
    )


def test_a_draft_that_holds_saves_steps() -> None:
    plain, without = run(repetitive(1, 0.0), None)
    fast, with_drafts = run(repetitive(1, 0.0), ALWAYS)
    assert fast == plain
    assert without.counters.steps == 60
    assert with_drafts.counters.steps < 15
    counters = with_drafts.counters
    assert counters.accepted_tokens == counters.generated_tokens - counters.steps
    assert counters.drafted_tokens >= counters.accepted_tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_that_fails_costs_no_token(temperature: float) -> None:
    plain, _ = run(repetitive(2, temperature), None)
    fast, scheduler = run(repetitive(2, temperature), ALWAYS)
    assert fast == plain
    assert 0 < scheduler.counters.accepted_tokens < scheduler.counters.drafted_tokens


def test_what_does_not_pay_is_not_drafted() -> None:
    _, scheduler = run(repetitive(2, 1.0), NEVER)
    assert scheduler.counters.drafted_tokens == 0
