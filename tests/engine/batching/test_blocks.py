"""Blocks: tables that share them, what stays of many prefixes, and who gets memory first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from afterword.core.job import Ended, Job, Prefilled, Sampled, SamplingParams
from afterword.engine.batching.block_budget import BlockBudget
from afterword.engine.batching.blocks import BlockCopy, BlockTables, NoBlocksError
from afterword.engine.batching.outcome import evaluate
from afterword.engine.batching.scheduler import Scheduler
from afterword.engine.batching.sequence import Request
from afterword.engine.batching.slots import Slots
from afterword.engine.sampler import Sampler
from afterword.engine.toy import ToyRunner, ToyTokenizer
from support.examples import examples

TOKENIZER = ToyTokenizer()
VOCABULARY = len(TOKENIZER.pieces)
SIZE = 4
BLOCKS = 9
TABLES = st.integers(0, 3)
QUESTIONS = 3


class TablesMachine(RuleBasedStateMachine):
    """Cells that are written by tables in any order are those of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = BlockTables(BLOCKS, SIZE)
        self.cells = [[-1] * SIZE for _ in range(BLOCKS)]
        self.lists: list[list[int]] = [[], [], [], []]
        self.written = 0

    def copy(self, copied: BlockCopy | None) -> None:
        if copied is not None:
            assert copied.source != copied.destination
            part = self.cells[copied.source][: copied.tokens]
            self.cells[copied.destination][: copied.tokens] = part

    @rule(number=TABLES, tokens=st.integers(1, 9))
    def write(self, number: int, tokens: int) -> None:
        mine = self.lists[number]
        try:
            self.tables.grow(number, len(mine) + tokens)
        except NoBlocksError:
            assert self.tables.blocks_for(len(mine) + tokens) > self.tables.free
            return
        for _ in range(tokens):
            self.written += 1
            block = self.tables.table(number)[len(mine) // SIZE]
            self.cells[block][len(mine) % SIZE] = self.written
            mine.append(self.written)

    @rule(source=TABLES, number=TABLES, tokens=st.integers(1, 20))
    def fork(self, source: int, number: int, tokens: int) -> None:
        if self.lists[number] or tokens > len(self.lists[source]):
            return
        try:
            self.copy(self.tables.fork(source, number, tokens))
        except NoBlocksError:
            assert not self.tables.free
            return
        self.lists[number] = self.lists[source][:tokens]

    @rule(number=TABLES, tokens=st.integers(0, 20))
    def trim(self, number: int, tokens: int) -> None:
        if tokens > len(self.lists[number]):
            return
        last = self.tables.table(number)[: self.tables.blocks_for(tokens)][-1:]
        if tokens % SIZE and self.tables.is_shared(last[0]) and not self.tables.free:
            return
        self.copy(self.tables.trim(number, tokens))
        del self.lists[number][tokens:]

    @invariant()
    def sound(self) -> None:
        self.tables.check()
        for number, mine in enumerate(self.lists):
            cells = [cell for block in self.tables.table(number) for cell in self.cells[block]]
            assert cells[: len(mine)] == mine


TestTables = TablesMachine.TestCase
TestTables.settings = settings(max_examples=examples(150), deadline=None)


class Engine:
    """A scheduler with blocks on the toy runner, one request at a time unless said otherwise."""

    def __init__(
        self, blocks: int, *, sequences: int = 4, context: int = 64, drafts: bool = False
    ) -> None:
        self.runner = ToyRunner(
            VOCABULARY, slots=blocks + sequences, sequences=sequences, blocks=blocks,
            context_tokens=context, end_ids=sorted(TOKENIZER.end_ids),
        )  # fmt: skip
        self.scheduler = Scheduler(self.runner, TOKENIZER.end_ids, score_budget_bytes=0)
        self.sampler = Sampler(VOCABULARY)
        self.key = 0
        self.row_share = 0.1 if drafts else None
        self.drawn: dict[tuple[int, int], list[int]] = {}

    def add(self, prompt: list[int], *, n: int = 1, tokens: int = 1) -> int:
        self.key += 1
        sampling = SamplingParams(temperature=0, ignore_eos=True)
        job = Job(prompt_ids=tuple(prompt), n=n, max_tokens=tokens, sampling=sampling, seed=0)
        self.scheduler.add(self.key, [job])
        return self.key

    def step(self) -> list[tuple[int, Prefilled | Ended]]:
        step = self.scheduler.schedule(64, row_share=self.row_share)
        if step is not None:
            self.runner.apply(step.instructions)
            rows = self.runner.decode(step.batch)
            self.scheduler.update(step, evaluate(step, rows, self.sampler))
        self.scheduler.check()
        events = self.scheduler.take_events()
        for key, event in events:
            if isinstance(event, Sampled):
                self.drawn.setdefault((key, event.seq), []).extend(event.tokens)
        return [(key, event) for key, event in events if isinstance(event, Prefilled | Ended)]

    def run(self) -> list[tuple[int, Prefilled | Ended]]:
        events = []
        while not self.scheduler.idle:
            events += self.step()
        return events

    def cached(self, prompt: list[int]) -> int:
        """Answer a prompt; returns how many of its tokens came from the cache."""
        self.add(prompt)
        return sum(event.cached_tokens for _, event in self.run() if isinstance(event, Prefilled))


def in_turn(engine: Engine, headers: int, tokens: int) -> list[int]:
    """Returns for each question how many tokens of all headers came from the cache."""
    return [
        sum(
            engine.cached([10 + header, 100 + header, *([7] * (tokens - 2)), question, 5, 6])
            for header in range(headers)
        )
        for question in range(QUESTIONS)
    ]


def test_headers_that_fit_are_all_kept_however_many_sequences_run() -> None:
    headers, tokens = 57, 30
    found = in_turn(Engine(headers * 9, sequences=2), headers, tokens)
    assert found == [0, headers * tokens, headers * tokens]


def test_headers_that_take_turns_are_kept_as_far_as_memory_goes() -> None:
    """The least recently used one alone would always be the one that is asked for next."""
    headers, tokens, kept = 50, 29, 30
    # A prompt takes eight blocks, the beginning that all have in common none.
    first, *later = in_turn(Engine(8 * kept, sequences=2), headers, tokens)
    assert first == 0
    assert all(found >= 0.85 * kept * tokens for found in later)


def test_a_prefix_that_becomes_frequent_is_kept_again() -> None:
    engine = Engine(8 * 4, sequences=2)
    hot = list(range(20, 50))
    engine.cached(hot)
    for other in range(8):
        engine.cached([60 + other, *range(100, 128)])
    found = [engine.cached(hot) for _ in range(8) if engine.cached([*range(130, 159)]) >= 0]
    assert found[-1] == len(hot) - 1


def test_the_oldest_prefix_loses_its_end_first() -> None:
    engine = Engine(16, sequences=2)
    old = list(range(20, 49))
    engine.cached(old)
    engine.cached(list(range(60, 97)))
    # Seventeen blocks and more do not fit; of the older prompt, the beginning stays.
    assert 0 < engine.cached(old) < len(old) - 1


def test_siblings_share_the_blocks_of_their_prompt() -> None:
    engine = Engine(16, sequences=9)
    engine.add(list(range(20, 41)), n=8, tokens=3)
    counted = []
    while not engine.scheduler.idle:
        engine.step()
        counted.append(engine.scheduler.cells()[0])
    # Five whole blocks are shared; each sibling has one of its own.
    assert max(counted) == (5 + 8) * SIZE


def answers(engine: Engine, jobs: Sequence[Job], *, steps_between: int = 0) -> list[list[int]]:
    """Run jobs as requests of their own; returns the drawn tokens of each sibling, in order."""
    drawn: dict[tuple[int, int], list[int]] = {}
    ended: list[tuple[int, int]] = []
    engine.drawn = drawn
    for job in jobs:
        engine.key += 1
        engine.scheduler.add(engine.key, [job])
        for _ in range(steps_between):
            ended += [(key, event.seq) for key, event in engine.step() if isinstance(event, Ended)]
    ended += [(key, event.seq) for key, event in engine.run() if isinstance(event, Ended)]
    assert sorted(ended) == [(key, s) for key, job in enumerate(jobs, 1) for s in range(job.n)]
    return [drawn[at] for at in sorted(drawn)]


def sampled(prompt: Sequence[int], *, n: int, tokens: int, seed: int) -> Job:
    return Job(
        prompt_ids=tuple(prompt), n=n, max_tokens=tokens, seed=seed, logprobs=1,
        sampling=SamplingParams(temperature=1, presence_penalty=0.5),
    )  # fmt: skip


def test_requests_that_may_want_all_memory_run_together_until_they_do() -> None:
    """Six requests have room for 60 tokens each, and want 12: they need no turns."""
    engine = Engine(6 * 8, sequences=8)
    for number in range(6):
        engine.add([20 + number, 1, 2, 3], tokens=60)
    for _ in range(12):
        engine.step()
    assert engine.scheduler.running == 6
    assert engine.scheduler.counters.preemptions == 0


def test_a_sequence_that_was_preempted_goes_on_as_if_nothing_had_happened() -> None:
    jobs = [sampled([20 + i, 1, 2, 3], n=1 + i % 2, tokens=40, seed=i) for i in range(6)]
    small, large = Engine(16, sequences=9), Engine(200, sequences=9)
    assert answers(small, jobs) == answers(large, jobs)
    assert small.scheduler.counters.preemptions > 0
    assert large.scheduler.counters.preemptions == 0
    assert small.scheduler.counters.generated_tokens == large.scheduler.counters.generated_tokens


def test_drafts_preempt_no_sequence() -> None:
    """A sequence is preempted if one more token of each does not fit, however long drafts are."""
    engine = Engine(16, drafts=True)
    sampling = SamplingParams(temperature=0, ignore_eos=True, logit_bias=((1, 100.0),))
    for head in (20, 21):
        job = Job(prompt_ids=(head, 1, 1, 1), n=1, max_tokens=60, sampling=sampling, seed=0)
        engine.scheduler.add(head, [job])
    short = False
    while not engine.scheduler.counters.preemptions:
        running = engine.scheduler._slots.running
        lengths = [sequence.length for _, sequence in running]
        # One more token of each takes more blocks than there are.
        short = sum(-(-length // SIZE) for length in lengths) > 16
        engine.step()
    assert short
    assert engine.scheduler.counters.accepted_tokens > 0


def test_a_request_with_many_sequences_gives_way_to_others() -> None:
    engine = Engine(20, sequences=9)
    crowd = engine.add([1, 2, 3, 4], n=4, tokens=56)
    engine.step()
    one = engine.add([9, 9, 9, 9], tokens=56)
    order = [key for key, event in engine.run() if isinstance(event, Ended)]
    assert engine.scheduler.counters.preemptions > 0
    assert order.index(one) < len(order) - 1 - order[::-1].index(crowd)


def test_a_preempted_sequence_goes_on_before_its_siblings_start() -> None:
    engine = Engine(16, sequences=9)
    answers(engine, [sampled([1, 2, 3], n=20, tokens=40, seed=1)])
    # If siblings started first, it would be 23 preemptions and 525 tokens.
    assert 0 < engine.scheduler.counters.preemptions <= 17
    assert engine.scheduler.counters.prefilled_tokens <= 132


def test_a_preempted_sequence_can_be_aborted() -> None:
    engine = Engine(16, sequences=8)
    keys = [engine.add([20 + number, 1, 2, 3], tokens=60) for number in range(4)]
    while not engine.scheduler.counters.preemptions:
        engine.step()
    for key in keys:
        engine.scheduler.abort_request(key)
        engine.scheduler.check()
    assert engine.scheduler.idle


JOBS = st.lists(
    st.builds(
        sampled,
        st.lists(st.integers(10, 14), min_size=1, max_size=20),
        n=st.integers(1, 3),
        tokens=st.integers(1, 44),
        seed=st.integers(0, 3),
    ),
    min_size=1,
    max_size=7,
)


@given(JOBS, st.integers(16, 40), st.integers(0, 9), st.booleans())
@settings(max_examples=examples(100), deadline=None)
def test_the_size_of_memory_changes_no_answer(
    jobs: list[Job], blocks: int, steps_between: int, drafts: bool
) -> None:
    small = Engine(blocks, sequences=9, drafts=drafts)
    large = Engine(400, sequences=9)
    assert answers(small, jobs, steps_between=steps_between) == answers(large, jobs)


def test_a_request_that_needs_much_memory_goes_before_later_ones() -> None:
    engine = Engine(16, sequences=8)
    first = engine.add([9, 8, 7, 6], tokens=20)
    engine.step()
    large = engine.add([1, 2, 3, 4], tokens=60)
    small = [engine.add([30 + number, 1], tokens=2) for number in range(4)]
    order = [key for key, event in engine.run() if isinstance(event, Prefilled)]
    assert order == [large, *small]
    assert first not in order


def test_a_slot_that_is_empty_again_and_again_is_listed_once() -> None:
    """A server that computes one request after another would list it once for each."""
    (sequence,) = Request(0, [sampled((1,), n=1, tokens=1, seed=0)], frozenset(), 0).look_ahead(1)
    slots = Slots(2)
    for _ in range(20):
        slot = slots.victim(None, over_awaited=False)
        assert slot is slots[0]
        slots.occupy(slot, sequence)
        slots.vacate(slot)
        slots.check()
    assert len(slots._empty) == 1


def test_a_table_without_blocks_left_says_so() -> None:
    tables = BlockTables(2, SIZE)
    tables.grow(0, 5)
    with pytest.raises(NoBlocksError, match="1 blocks are needed, 0 are free"):
        tables.grow(1, 1)
    with pytest.raises(NoBlocksError, match="none is free"):
        tables.fork(0, 1, 5)


@pytest.mark.parametrize(("blocks", "kept"), [(15, 0), (16, 4), (20, 4)])
def test_more_choices_of_a_request_leave_room_for_a_context(blocks: int, kept: int) -> None:
    """Where there is room for four: the next request starts without waiting for them."""
    slots = Slots(1, 1)
    budget = BlockBudget(BlockTables(blocks, 4), slots, 16, lambda *_: None)
    assert budget.admits(blocks * 4, None, more=False)
    assert not budget.admits(blocks * 4 + 1, None, more=False)
    assert budget.admits((blocks - kept) * 4, None, more=True)
    assert not budget.admits((blocks - kept) * 4 + 1, None, more=True)
