"""Many tokens that come at once are folded in pieces, between which the event loop is free."""

from __future__ import annotations

from array import array

import pytest

from afterword.completion.stopwatch import Stopwatch
from afterword.completion.stream import CompletionStream
from afterword.core.job import Ended, Event, Prefilled, Sampled
from afterword.core.pace import SLICE_COST, Pace
from completion.test_stream_time import LETTER, Clock, Scripted, plan_of

TOKENS = 900


@pytest.mark.parametrize("alternatives", [0, 5, 20])
async def test_pieces_are_as_small_as_their_alternatives_want(
    monkeypatch: pytest.MonkeyPatch, alternatives: int
) -> None:
    costs: list[float] = []
    spend = Pace.spend

    async def noted(pace: Pace, cost: float) -> None:
        costs.append(cost)
        await spend(pace, cost)

    monkeypatch.setattr(Pace, "spend", noted)
    entries = TOKENS * alternatives
    event = Sampled(
        0, 0, array("i", [LETTER] * TOKENS), array("d", [-0.5] * TOKENS),
        array("i", [LETTER] * entries), array("d", [-0.5] * entries),
    )  # fmt: skip
    clock = Clock()
    events: list[Event] = [Prefilled(0, 4, 1, None), event, Ended(0, 0, "length", TOKENS)]
    plan = await plan_of(n_predict=TOKENS, n_probs=alternatives)
    stream = CompletionStream(
        plan, Scripted(clock, [(0, each) for each in events]), bytes, Stopwatch(clock)
    )
    async with stream:
        (choice,) = [choice async for choice in stream.choices()]
    assert choice.text == "x" * TOKENS
    assert max(costs) <= SLICE_COST
    assert sum(costs) >= 2 * (TOKENS + entries)
