"""The times of an infill (F5), with a clock that stands still until it is moved."""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from afterword.completion.infill_request import decode_infill
from afterword.completion.plan import Plan
from afterword.completion.service import Caller
from afterword.completion.stopwatch import Stopwatch
from afterword.completion.stream import CompletionStream
from afterword.core.job import Ended, Event, Prefilled, Sampled
from afterword.engine.toy import ToyTokenizer, toy_engine
from support.planning import NothingToLeave, toy_service

TOKENIZER = ToyTokenizer()
NEWLINES, LETTER = TOKENIZER.encode("\n\n")[0], TOKENIZER.encode("x")[0]


class Clock:
    """A clock that only ``move`` moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Scripted(NothingToLeave):
    """A generation whose events come at given times, in milliseconds after the start."""

    def __init__(self, clock: Clock, script: Sequence[tuple[float, Event]]) -> None:
        self._clock = clock
        self._script = list(script)
        self._start_s = clock.now_s
        self.aborted = False

    def shorten(self, shortcut: Callable[[list[Event]], bool] | None) -> None:
        """All readers are woken."""

    def __aiter__(self) -> AsyncIterator[list[Event]]:
        return self

    async def __anext__(self) -> list[Event]:
        if not self._script or self.aborted:
            raise StopAsyncIteration
        at_ms, event = self._script.pop(0)
        self._clock.now_s = self._start_s + at_ms / 1000
        return [event]

    def abort(self, job: int, seq: int) -> None:
        assert (job, seq) == (0, 0)
        self.aborted = True


def sampled(token: int) -> Sampled:
    return Sampled(0, 0, array("i", (token,)), array("d"), array("i"), array("d"))


async def plan_of(**body: object) -> Plan:
    engine = toy_engine()
    service = toy_service(engine)
    raw = json.dumps({"input_prefix": "a", "input_suffix": "b", **body}).encode()
    infill = await service.parse(raw, decode_infill, Caller())
    plan = await service.plan_request(infill.request, len(raw), Caller(), infill=infill.options)
    await engine.aclose()
    return plan


async def run(plan: Plan, script: Sequence[tuple[float, Event]]) -> CompletionStream:
    clock = Clock()
    stream = CompletionStream(
        plan, Scripted(clock, script), random.Random(1).randbytes, Stopwatch(clock)
    )
    async with stream:
        answer = [choice async for choice in stream.choices()]
    stream.text = answer[0].text  # type: ignore[attr-defined]
    return stream


def script(*tokens: tuple[float, int]) -> list[tuple[float, Event]]:
    made: list[tuple[float, Event]] = [(40, Prefilled(0, 4, 1, None))]
    made += [(at_ms, sampled(token)) for at_ms, token in tokens]
    made.append((tokens[-1][0], Ended(0, 0, "length", len(tokens))))
    return made


async def test_F5_times_are_measured() -> None:
    stream = await run(await plan_of(), script((50, LETTER), (70, LETTER), (90, LETTER)))
    assert stream.watch is not None
    assert stream.watch.prompt_ms == pytest.approx(50)
    assert stream.watch.generated_ms == pytest.approx(40)
    assert stream.end_of(0, 0) == ("limit", "")


@pytest.mark.parametrize(
    ("most_ms", "text"),
    [
        (-1, "x\n\nx\n\nx\n\nx"),
        (0, "x\n\nx\n\nx\n\nx"),
        (1000, "x\n\nx\n\nx\n\nx"),
        (151, "x\n\nx\n\nx\n\n"),
        (100, "x\n\nx\n\n"),
        (99, "x\n\nx\n\n"),
        (31, "x\n\nx\n\n"),
        (29, "x\n\n"),
        (1, "x\n\n"),
    ],
)
async def test_F5_t_max_predict_ms_ends_with_the_next_whole_line(most_ms: int, text: str) -> None:
    """The time runs from the first token on; a line that is not whole is not cut."""
    tokens = ((500, LETTER), (530, NEWLINES), (600, LETTER), (650, NEWLINES), (700, LETTER),
              (700, NEWLINES), (800, LETTER))  # fmt: skip
    stream = await run(await plan_of(t_max_predict_ms=most_ms), script(*tokens))
    assert stream.text == text  # type: ignore[attr-defined]
    assert stream.end_of(0, 0) == ("limit", "")


async def test_F5_other_routes_do_not_look_at_the_clock() -> None:
    engine = toy_engine()
    service = toy_service(engine)
    plan = await service.plan(b'{"model": "toy", "prompt": "a", "suffix": "b", "max_tokens": 2}')

    def clock() -> float:
        raise AssertionError("the clock was read")

    async with service.open(plan, clock) as stream:
        await stream.completion()
    assert stream.watch is None
    await engine.aclose()
