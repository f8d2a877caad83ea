"""Chunks that go to a sink while their reader waits: the same ones, in the same order."""

from __future__ import annotations

import asyncio
import json
import random
from array import array
from typing import Any

import msgspec
import pytest

from afterword.completion.plan import Plan
from afterword.completion.stream import CompletionStream
from afterword.core.job import Ended, Event, Prefilled, Sampled
from afterword.core.mailbox import Mailbox, MailboxReader
from afterword.core.wire import Chunk
from afterword.engine.toy import ToyTokenizer, toy_engine
from support.planning import NothingToLeave, toy_service

TOKENS = ToyTokenizer().encode("abcé x\nbcd")


class ByHand(NothingToLeave, MailboxReader):
    """A generation whose events a test puts in."""

    def __init__(self) -> None:
        super().__init__(Mailbox())
        self.aborted = False

    def abort(self, job: int, seq: int) -> None:
        self.aborted = True
        self.put([Ended(job, seq, "stop", 1)])

    def put(self, events: list[Event]) -> None:
        self._mailbox.put(events)

    def close(self) -> None:
        self._mailbox.close()


class Sent:
    """A sink, and all that was sent. ``direct`` counts what came to the sink."""

    def __init__(self, *, free: bool = True) -> None:
        self.free = free
        self.chunks: list[Chunk] = []
        self.direct = 0

    def is_free(self) -> bool:
        return self.free

    def send(self, chunk: Chunk) -> None:
        self.direct += 1
        self.chunks.append(chunk)


async def plan_of(**body: Any) -> Plan:
    engine = toy_engine()
    service = toy_service(engine)
    raw = {"model": "toy", "prompt": "a", "max_tokens": 20, "stream": True, **body}
    plan = await service.plan(json.dumps(raw).encode())
    await engine.aclose()
    return plan


def sampled(plan: Plan, *tokens: int) -> Sampled:
    k = plan.jobs[0].logprobs
    tops = [(token, -1.0) for token in tokens for _ in range(k or 0)]
    return Sampled(
        0, 0, array("i", tokens), array("d", [] if k is None else [-1.0] * len(tokens)),
        array("i", [token for token, _ in tops]), array("d", [value for _, value in tops]),
    )  # fmt: skip


async def run(plan: Plan, sent: Sent, *, sink: bool) -> tuple[list[Any], bool]:
    """Stream ten tokens. Returns the chunks as JSON has them, and whether it was aborted."""
    generation = ByHand()
    answer = CompletionStream(plan, generation, random.Random(1).randbytes)

    async def read() -> None:
        async for chunks in answer.chunks(sent if sink else None):
            sent.chunks += chunks

    async with answer:
        reader = asyncio.create_task(read())
        steps: list[list[Event]] = [[Prefilled(0, 1, 0, None), sampled(plan, TOKENS[0])]]
        steps += [[sampled(plan, token)] for token in TOKENS[1:-2]]
        steps += [[sampled(plan, *TOKENS[-2:])], [Ended(0, 0, "length", len(TOKENS))]]
        for events in steps:
            generation.put(events)
            for _ in range(5):  # the reader waits again
                await asyncio.sleep(0)
        generation.close()
        await reader
        usage = answer.usage
    shown = [msgspec.to_builtins(chunk) for chunk in sent.chunks]
    return [*shown, usage.completion_tokens], generation.aborted


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"logprobs": 2},
        {"stop": ["x\n"]},
        {"stop": ["never comes"], "logprobs": 0},
        {"return_token_ids": True},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ],
)
async def test_S2_a_sink_gets_what_the_reader_would(body: dict[str, Any]) -> None:
    plan = await plan_of(**body)
    through, past = Sent(), Sent()
    expected = await run(plan, past, sink=False)
    assert await run(plan, through, sink=True) == expected
    assert through.direct >= 4
    assert past.direct == 0


async def test_a_sink_that_is_not_free_gets_nothing() -> None:
    plan = await plan_of()
    full = Sent(free=False)
    chunks, _ = await run(plan, full, sink=True)
    assert full.direct == 0
    assert chunks[-1] == len(TOKENS)


async def test_S6_what_a_sink_raises_is_the_readers() -> None:
    class Broken(Sent):
        def send(self, chunk: Chunk) -> None:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await run(await plan_of(), Broken(), sink=True)
