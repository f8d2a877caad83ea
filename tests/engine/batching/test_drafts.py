"""Prompt lookup: what it drafts, when a draft pays, and that answers stay identical."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.core.job import Ended, Job, Sampled, SamplingParams
from afterword.engine.batching.drafts import StepCost, learn, look_up, make_drafts
from afterword.engine.batching.outcome import evaluate
from afterword.engine.batching.scheduler import Scheduler
from afterword.engine.batching.sequence import Draft, Request, Sequence
from afterword.engine.batching.slots import Slot
from afterword.engine.sampler import Sampler
from afterword.engine.toy import ToyRunner, ToyTokenizer

TOKENIZER = ToyTokenizer()
VOCABULARY = len(TOKENIZER.pieces)
ALWAYS, NEVER = 0.0, 1.0


def brute_force(tokens: list[int], most: int) -> tuple[list[int], float]:
    """Compare every earlier occurrence of the last token, by the 32 tokens up to it."""
    whole = sum(0.8**back for back in range(32))
    best, best_similarity = -1, 0.0
    for place in range(len(tokens) - 1):
        if tokens[place] == tokens[-1]:
            agree = [tokens[place - i] == tokens[-1 - i] for i in range(min(32, place + 1))]
            similarity = sum(0.8**i for i, same in enumerate(agree) if same) / whole
            if similarity > best_similarity - 1e-12:
                best, best_similarity = place, similarity
    if best < 0:
        return [], 0.0
    after = tokens[best + 1 :]
    return list(itertools.islice(itertools.cycle(after), most)), best_similarity


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 6))
def test_the_most_similar_and_latest_place_is_continued(tokens: list[int], most: int) -> None:
    # There are so few tokens that look_up compares all candidates.
    found, similarity = look_up(np.array(tokens, np.int32), most)
    expected, expected_similarity = brute_force(tokens, most)
    assert found.tolist() == expected
    assert similarity == pytest.approx(expected_similarity)


def test_a_place_is_found_again_although_a_token_was_replaced() -> None:
    """After a rename, the longest exact match would be the wrong place."""
    line = [10, 11, 12, 13, 14, 15]
    renamed = [10, 11, 99, 13, 14]
    misleading = [20, 21, 14, 30]
    found, _ = look_up(np.array([*line, 16, *misleading, *renamed], np.int32), 2)
    assert found.tolist() == [15, 16]


def test_right_tokens_raise_the_odds_up_to_the_first_mistake() -> None:
    draft = Draft([5, 6, 7], similarity=3)
    others, first, following = draft.first[4], draft.first[3], draft.next
    learn(draft, [5, 9])
    assert draft.first[3] == pytest.approx(first + 0.05 * (1 - first))
    assert draft.next == pytest.approx(following * 0.95)
    assert draft.tokens == []
    assert draft.first[4] == others
    learn(draft, [5])
    assert draft.next == pytest.approx(following * 0.95)
    draft.tokens = [5, 6, 7]
    learn(draft, [9])
    assert draft.first[3] == pytest.approx((first + 0.05 * (1 - first)) * 0.95)
    assert draft.next == pytest.approx(following * 0.95)


def test_the_cost_of_a_row_is_learned_from_steps_with_and_without_drafts() -> None:
    assert StepCost().row_share == 0.5
    # Steps take 8 ms and 2 ms a row. One step with a draft of any length is enough to learn that.
    for rows in (8, 3, 17, 5):
        cost = StepCost()
        cost.observe(rows=1, drafted=0, drawn=1, took_s=0.010)
        assert cost.row_share == 0.5
        cost.observe(rows=rows, drafted=rows - 1, drawn=1, took_s=0.008 + 0.002 * rows)
        token_s = 0.85 * 0.010 + 0.15 * (0.008 + 0.002 * rows)
        assert cost.row_share == pytest.approx(0.002 / token_s)


def test_accepted_drafts_make_tokens_cheaper_and_rows_relatively_dearer() -> None:
    cost = StepCost()
    cost.observe(rows=1, drafted=0, drawn=1, took_s=0.010)
    for _ in range(120):
        cost.observe(rows=5, drafted=4, drawn=5, took_s=0.018)
    assert cost.row_share == pytest.approx(2 / (18 / 5))
    cost.observe(rows=1, drafted=0, drawn=1, took_s=0.010)
    for _ in range(120):
        cost.observe(rows=5, drafted=4, drawn=1, took_s=0.018)
    assert cost.row_share == pytest.approx(2 / 18)


def test_the_cost_of_a_row_is_the_same_for_several_sequences() -> None:
    cost = StepCost()
    cost.observe(rows=4, drafted=0, drawn=4, took_s=0.016)
    cost.observe(rows=8, drafted=4, drawn=6, took_s=0.024)
    assert cost.row_share == pytest.approx(0.002 / 0.004)


def test_one_slow_step_does_not_end_drafts_for_ever() -> None:
    cost = StepCost()
    cost.observe(rows=1, drafted=0, drawn=1, took_s=0.010)
    cost.observe(rows=3, drafted=2, drawn=3, took_s=0.500)
    assert cost.row_share > 1
    for _ in range(128):
        cost.observe(rows=1, drafted=0, drawn=1, took_s=0.010)
    assert cost.row_share == 0.5
    cost.observe(rows=3, drafted=2, drawn=1, took_s=0.014)
    assert cost.row_share == pytest.approx(0.2, rel=0.1)


def test_one_slow_step_without_a_draft_does_not_make_drafts_free_for_ever() -> None:
    cost = StepCost()
    cost.observe(rows=1, drafted=0, drawn=1, took_s=0.500)
    for _ in range(127):
        cost.observe(rows=3, drafted=2, drawn=1, took_s=0.014)
        assert cost.row_share == 0
    cost.observe(rows=3, drafted=2, drawn=1, took_s=0.014)
    # Nothing is drafted now, so that the next step measures.
    assert cost.row_share == 1
    cost.observe(rows=1, drafted=0, drawn=1, took_s=0.010)
    assert cost.row_share == pytest.approx(0.002 / 0.014, rel=0.1)


def test_rows_that_cost_nothing_are_always_worth_it() -> None:
    cost = StepCost()
    cost.observe(rows=1, drafted=0, drawn=1, took_s=0.010)
    cost.observe(rows=8, drafted=7, drawn=3, took_s=0.009)
    assert cost.row_share == 0


def a_sequence(ids: list[int], *, max_tokens: int, likely: float) -> tuple[Slot, Sequence]:
    job = Job(prompt_ids=tuple(ids), n=1, max_tokens=max_tokens, sampling=SamplingParams(), seed=0)
    sequence = Request(0, [job], frozenset(), 0.0).look_ahead(1)[0]
    slot = Slot(0)
    slot.tokens = np.resize(np.array(ids, np.int32), sequence.limit)
    sequence.draft.first = [likely] * len(sequence.draft.first)
    sequence.draft.next = likely
    return slot, sequence


@pytest.mark.parametrize(
    ("likely", "row_share", "length"),
    [(0.9, 0.5, 6), (0.5, 0.5, 0), (0.4, 0.5, 0), (0.99, 0.1, 16), (1.0, 0.9, 16),
     (0.9, ALWAYS, 16)],
)  # fmt: skip
def test_a_draft_is_as_long_as_its_last_token_pays(
    likely: float, row_share: float, length: int
) -> None:
    slot, sequence = a_sequence(list(range(20)) * 2, max_tokens=50, likely=likely)
    assert make_drafts([(slot, sequence)], row_share) == length
    assert sequence.draft.tokens == list(range(16))


def test_nothing_is_drafted_beyond_max_tokens() -> None:
    drafting = a_sequence(list(range(20)) * 2, max_tokens=4, likely=0.9)
    assert make_drafts([drafting], ALWAYS) == 3


def test_all_drafts_are_as_short_as_the_least_promising_one() -> None:
    one = a_sequence(list(range(20)) * 2, max_tokens=50, likely=0.9)
    other = a_sequence(list(range(20)), max_tokens=50, likely=0.9)
    assert make_drafts([one, other], ALWAYS) == 0


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


def test_an_accepted_draft_saves_steps() -> None:
    plain, without = run(repetitive(1, 0.0), None)
    fast, with_drafts = run(repetitive(1, 0.0), ALWAYS)
    assert fast == plain
    assert without.counters.steps == 60
    assert with_drafts.counters.steps < 15
    counters = with_drafts.counters
    assert counters.accepted_tokens == counters.generated_tokens - counters.steps
    assert counters.drafted_tokens >= counters.accepted_tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_rejected_draft_changes_no_token(temperature: float) -> None:
    plain, _ = run(repetitive(2, temperature), None)
    fast, scheduler = run(repetitive(2, temperature), ALWAYS)
    assert fast == plain
    assert 0 < scheduler.counters.accepted_tokens < scheduler.counters.drafted_tokens


def test_drafts_that_do_not_pay_are_not_computed() -> None:
    _, scheduler = run(repetitive(2, 1.0), NEVER)
    assert scheduler.counters.drafted_tokens == 0
