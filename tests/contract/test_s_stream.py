"""S: streams, message by message. ``properties`` tests that they fold to the answer."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.batching.runner import Batch, DecodeError
from afterword.engine.toy import ToyTokenizer, toy_engine
from support.asgi import Client, chunks_of

B = {"98": 100}
TOKENIZER = ToyTokenizer()
AT_HAND = pytest.mark.parametrize("serve", ["here"], indirect=True)
"""For tests that need single steps of the engine."""
NO_END = {str(i): -100 for i in sorted(TOKENIZER.end_ids)}


class Gate:
    """Lets the engine's thread take a counted number of steps."""

    def __init__(self, steps: int = 0) -> None:
        self._permits = threading.Semaphore(steps)
        self.taken = 0

    def __call__(self, batch: Batch) -> None:
        self._permits.acquire()
        self.taken += 1

    def allow(self, steps: int) -> None:
        for _ in range(steps):
            self._permits.release()


async def slots_free(engine: BatchingEngine, gate: Gate | None = None) -> None:
    """Wait until no sequence is left. If one stays, the test hangs."""
    while engine.stats().running_sequences or engine.stats().active_slots:
        if gate is not None:
            gate.allow(1)
        await asyncio.sleep(0)


async def test_S1_frames(client: Client) -> None:
    reply = await client.post(
        "/v1/completions", {"model": "toy", "prompt": "a", "max_tokens": 3, "stream": True}
    )
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    assert "content-length" not in reply.headers
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert chunks_of(reply.body)


@pytest.mark.parametrize(
    ("stops", "parts"),
    [(["bbbbbbbb", "xyz"], ["", "bbbbb"]), (["bx", "xyz"], ["", "b", "b", "b", "bb"])],
)
async def test_S2_only_what_could_match_is_held_back(
    serve: Callable[..., Client], stops: list[str], parts: list[str]
) -> None:
    """The first chunk comes with the first token, even if its text is held back (S7)."""
    gate = Gate()
    engine = toy_engine(before_decode=gate)
    client = serve(engine)
    exchange, run = client.begin(
        {"model": "toy", "prompt": "a", "max_tokens": 5, "temperature": 0, "stream": True,
         "logit_bias": B, "stop": stops}
    )  # fmt: skip
    for count in range(1, len(parts)):
        gate.allow(1)
        await exchange.frames(count)
    gate.allow(10)
    await run
    chunks = chunks_of(exchange.reply.body)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == parts


async def test_S3_finish_reason_once_and_last(client: Client) -> None:
    chunks = await client.stream(prompt=["a", "b"], n=3, max_tokens=5, seed=1)
    for index in range(6):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert all(part["finish_reason"] is None for part in own[:-1])
        assert own[-1]["finish_reason"] in {"stop", "length"}


@AT_HAND
async def test_S4_choices_are_interleaved(serve: Callable[..., Client]) -> None:
    gate = Gate()
    client = serve(toy_engine(before_decode=gate))
    exchange, run = client.begin(
        {"model": "toy", "prompt": ["a", "b"], "max_tokens": 4, "temperature": 0, "stream": True,
         "logit_bias": B}
    )  # fmt: skip
    for step in range(1, 5):
        gate.allow(1)
        await exchange.frames(step)
    await run
    indices = [c["choices"][0]["index"] for c in chunks_of(exchange.reply.body)]
    assert indices == [0, 1] * 4


async def test_S5_usage(client: Client) -> None:
    body = {"prompt": "a", "n": 2, "max_tokens": 4, "seed": 2}
    chunks = await client.stream(**body, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    answer = await client.complete(**body)
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert chunks[-1]["usage"][name] == answer["usage"][name]
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks[:-1])
    for options in ({}, {"include_usage": False}):
        plain = await client.stream(**body, stream_options=options)
        assert all("usage" not in chunk and chunk["choices"] for chunk in plain)


async def test_S6_refused_before_the_status_line(client: Client) -> None:
    for body in ({"n": 0}, {"prompt": [7] * 300}, {"best_of": 2}, {"zzz": 1}):
        error = await client.refuse(**{"prompt": "a", "stream": True, **body})
        assert error["message"]


async def test_S6_a_later_failure_is_an_event(serve: Callable[..., Client]) -> None:
    steps = 0

    def fail_later(batch: Batch) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise DecodeError("a secret of the machine")

    client = serve(toy_engine(before_decode=fail_later))
    exchange, run = client.begin(
        {"model": "toy", "prompt": "a", "max_tokens": 9, "stream": True, "logit_bias": B}
    )
    await run
    *frames, last = exchange.reply.body[:-2].split(b"\n\n")
    assert exchange.reply.status == 200
    assert frames
    envelope = json.loads(last[6:])
    assert set(envelope["error"]) == {"message", "type", "param", "code"}
    assert envelope["error"]["type"] == "server_error"
    assert exchange.reply.headers["x-request-id"] in envelope["error"]["message"]
    assert b"secret" not in exchange.reply.body
    assert b"[DONE]" not in exchange.reply.body


async def test_S7_the_first_chunk_comes_with_the_first_token(serve: Callable[..., Client]) -> None:
    gate = Gate()
    client = serve(toy_engine(before_decode=gate))
    exchange, run = client.begin(
        {"model": "toy", "prompt": "a", "max_tokens": 3, "stream": True, "logit_bias": B}
    )
    while not exchange.sent:
        await asyncio.sleep(0)
    assert [m["type"] for m in exchange.sent] == ["http.response.start"]
    for token in range(1, 4):
        gate.allow(1)
        await exchange.frames(token)
    gate.allow(1)
    await run


async def test_S7_silence_is_filled_with_comments(serve: Callable[..., Client]) -> None:
    gate = Gate()
    client = serve(toy_engine(before_decode=gate), keep_alive_s=0.001)
    exchange, run = client.begin(
        {"model": "toy", "prompt": "a", "max_tokens": 2, "stream": True, "logit_bias": B}
    )
    await exchange.frames(2)
    assert exchange.sent[1]["body"] == b": keep-alive\n\n"
    gate.allow(9)
    await run
    frames = exchange.reply.body[:-2].split(b"\n\n")
    assert frames[-1] == b"data: [DONE]"
    assert all(frame.startswith((b"data: ", b": ")) for frame in frames)


@AT_HAND
async def test_S8_a_client_that_leaves_frees_its_slots(serve: Callable[..., Client]) -> None:
    for stream in (True, False):
        gate = Gate()
        engine = toy_engine(before_decode=gate)
        client = serve(engine)
        exchange, run = client.begin(
            {"model": "toy", "prompt": "a", "n": 3, "logit_bias": NO_END, "stream": stream}
        )
        gate.allow(3)
        while gate.taken < 3 or engine.stats().running_sequences < 3:
            await asyncio.sleep(0)
        exchange.leave.set()
        await run
        before = gate.taken
        gate.allow(1)
        await slots_free(engine)
        # Only the step that was running was still computed.
        assert gate.taken <= before + 1
        assert engine.stats().waiting_sequences == 0
        gate.allow(1000)


@AT_HAND
@pytest.mark.parametrize("steps", range(4))
async def test_S8_a_request_that_is_cancelled_twice(
    serve: Callable[..., Client], steps: int
) -> None:
    """A client leaves when the server stops, and the second cancellation meets the first."""
    gate = Gate()
    engine = toy_engine(before_decode=gate)
    client = serve(engine)
    exchange, run = client.begin(
        {"model": "toy", "prompt": "a", "logit_bias": NO_END, "stream": True}
    )
    gate.allow(1)
    await exchange.frames(1)
    run.cancel()
    for _ in range(steps):
        await asyncio.sleep(0)
    run.cancel()
    await asyncio.wait([run])
    before = gate.taken
    gate.allow(1)
    await slots_free(engine)
    assert gate.taken <= before + 1
    gate.allow(1000)


@AT_HAND
async def test_S8_a_client_that_leaves_while_waiting(serve: Callable[..., Client]) -> None:
    gate = Gate()
    engine = toy_engine(slots=1, before_decode=gate)
    client = serve(engine)
    body: dict[str, Any] = {"model": "toy", "prompt": "a", "max_tokens": 3, "logit_bias": B}
    first, first_run = client.begin(body)
    second, second_run = client.begin(body)
    gate.allow(1)
    while engine.stats().waiting_sequences != 1:
        await asyncio.sleep(0)
    second.leave.set()
    await second_run
    assert second.sent == []
    gate.allow(1000)
    await first_run
    assert first.reply.status == 200
    await slots_free(engine)
    assert engine.stats().waiting_sequences == 0


@pytest.mark.slow
async def test_a_stalled_reader_holds_nobody_up(serve: Callable[..., Client]) -> None:
    engine = toy_engine(slots=2, context_tokens=4096)
    client = serve(engine)
    unblock = asyncio.Event()
    stalled, stalled_run = client.begin(
        {"model": "toy", "prompt": "a", "max_tokens": 3000, "stream": True, "logit_bias": B},
        blocked=unblock,
    )
    await stalled.frames(1)
    for _ in range(3):
        answer = await client.complete(prompt="c", max_tokens=20, logit_bias=NO_END)
        assert answer["usage"]["completion_tokens"] == 20
    await slots_free(engine)
    # All tokens are made, but only the part that the reader did not take was sent.
    assert sum(m["type"] == "http.response.body" for m in stalled.sent) == 1
    unblock.set()
    await stalled_run
    chunks = chunks_of(stalled.reply.body)
    assert "".join(c["choices"][0]["text"] for c in chunks) == "b" * 3000
    # Waiting tokens were merged, not queued.
    assert len(chunks) < 100
