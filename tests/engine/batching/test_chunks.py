"""Which tokens a step computes: rows that decode first, then a fair share of each prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from afterword.core.job import Job, SamplingParams
from afterword.engine.batching.chunks import choose_spans
from afterword.engine.batching.sequence import Request, Sequence
from afterword.engine.batching.slots import Slot
from afterword.engine.batching.step import Span

Running = tuple[Slot, Sequence]


def running(
    index: int,
    prompt_tokens: int,
    *,
    since: int = 0,
    computed: int = 0,
    generated: int = 0,
    scored: bool = False,
    max_tokens: int = 8,
) -> Running:
    """A slot that got its sequence at ``since``, and has so many tokens computed."""
    job = Job(
        prompt_ids=tuple(range(prompt_tokens)), n=1, max_tokens=max_tokens, seed=0,
        sampling=SamplingParams(), prompt_logprobs=0 if scored else None,
    )  # fmt: skip
    sequence = Request(index, [job], frozenset(), 0.0).look_ahead(1)[0]
    sequence.generated = generated
    slot = Slot(index)
    slot.sequence, sequence.slot = sequence, index
    slot.computed, slot.last_used = computed, since
    slot.tokens = np.zeros(sequence.limit, np.int32)
    return slot, sequence


def decoding(index: int) -> Running:
    return running(index, 5, computed=5, generated=1)


def choose(*slots: Running, budget: int = 64, drafted: int = 0, **most: int) -> list[Span]:
    limits = {"most_tokens": 64, "most_rows": 64, **most}
    return choose_spans(slots, drafted=drafted, budget_tokens=budget, **limits)


def shares(spans: list[Span]) -> dict[int, int]:
    return {span.slot.index: span.tokens for span in spans}


def test_half_of_the_budget_is_for_the_prompt_that_waited_longest() -> None:
    long, short, middle = running(0, 100, since=1), running(1, 10, since=2), running(2, 30, since=3)
    # The rest goes to the shortest first.
    assert shares(choose(middle, short, long, budget=40)) == {0: 20, 1: 10, 2: 10}
    assert shares(choose(middle, short, long, budget=20)) == {0: 10, 1: 10}
    # What a prompt has computed does not count.
    short[0].computed = middle[0].computed = 8
    assert shares(choose(middle, short, long, budget=10)) == {0: 5, 1: 2, 2: 3}


def test_the_longest_waiting_prompt_takes_what_others_leave() -> None:
    slots = running(0, 100, since=1), running(1, 5, since=2)
    assert shares(choose(*slots, budget=40)) == {0: 35, 1: 5}
    # A short one needs less than half.
    slots = running(0, 100, since=2), running(1, 5, since=1)
    assert shares(choose(*slots, budget=40)) == {0: 35, 1: 5}


def test_a_single_token_is_for_the_prompt_that_waited_longest() -> None:
    slots = running(0, 3, since=2), running(1, 100, since=1)
    assert shares(choose(*slots, budget=1)) == {1: 1}


def test_of_prompts_of_one_length_the_earlier_one_goes_first() -> None:
    slots = running(0, 9, since=3), running(1, 100, since=1), running(2, 9, since=2)
    assert shares(choose(*slots, budget=12)) == {1: 6, 2: 6}


def test_rows_that_decode_leave_less_to_prompts() -> None:
    slots = running(0, 50), decoding(1), decoding(2), decoding(3)
    spans = choose(*slots, most_tokens=8)
    assert shares(spans) == {0: 5, 1: 1, 2: 1, 3: 1}
    assert [span.decodes for span in spans] == [False, True, True, True]
    assert shares(choose(*slots, budget=4)) == {0: 4, 1: 1, 2: 1, 3: 1}
    # No row is left for a prompt, and none of its tokens is computed.
    assert shares(choose(*slots, most_tokens=3, most_rows=3)) == {1: 1, 2: 1, 3: 1}


def test_a_draft_follows_each_row_that_decodes() -> None:
    spans = choose(decoding(1), decoding(0), drafted=3)
    assert [(s.slot.index, s.start, s.tokens, s.rows, s.drafted) for s in spans] == [
        (0, 5, 4, 4, 3),
        (1, 5, 4, 4, 3),
    ]
    assert all(span.samples and span.decodes for span in spans)


def test_the_last_token_of_a_prompt_gives_the_row_to_sample_from() -> None:
    def last(computed: int, budget: int, **more: Any) -> tuple[int, int, int, bool]:
        (span,) = choose(running(0, 20, computed=computed, **more), budget=budget)
        assert not span.decodes
        return span.start, span.tokens, span.rows, span.samples

    assert last(0, 19) == (0, 19, 0, False)
    assert last(0, 64) == (0, 20, 1, True)
    assert last(19, 64) == (19, 1, 1, True)
    # A prompt that is only scored needs no row of its last token.
    assert last(0, 64, scored=True, max_tokens=0) == (0, 19, 19, False)
    assert last(3, 5, scored=True) == (3, 5, 5, False)


def test_a_sequence_that_lost_its_memory_is_computed_as_a_prompt_is() -> None:
    (span,) = choose(running(0, 5, computed=2, generated=3))
    assert (span.start, span.tokens, span.rows, span.samples) == (2, 6, 1, True)


def test_the_longest_waiting_prompt_gets_rows_first() -> None:
    early, late = running(0, 30, since=1, scored=True), running(1, 10, since=2, scored=True)
    assert shares(choose(late, early, budget=40, most_rows=33)) == {0: 30, 1: 3}
    assert shares(choose(late, early, budget=40, most_rows=30)) == {0: 30}
    # Tokens before the first row that is wanted take no row.
    plain = running(2, 12, since=3)
    assert shares(choose(early, plain, decoding(3), budget=42, most_rows=31)) == {0: 30, 3: 1}
    assert shares(choose(early, plain, budget=42, most_rows=31)) == {0: 30, 2: 12}


@pytest.mark.parametrize(("computed", "tokens"), [(0, 7), (3, 4), (7, 13)])
def test_a_step_stops_where_a_checkpoint_is_saved(computed: int, tokens: int) -> None:
    slot, sequence = running(0, 20, computed=computed)
    sequence.cuts = [7] if computed < 7 else []
    (span,) = choose((slot, sequence))
    assert (span.tokens, span.samples) == (tokens, computed == 7)
