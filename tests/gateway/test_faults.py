"""Faults of upstreams: no request hangs, and no token is counted twice."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from afterword.gateway.engine import RemoteEngine
from conftest import make_client
from standins.server import Exchange, StandIn
from standins.upstreams import Front, hasty
from support.asgi import Client, Reply, chunks_of, fold

PATH = "/v1/completions"
BODY = {"model": "toy", "prompt": [97], "max_tokens": 3}


def hung(exchange: Exchange) -> None:
    """Accepts the request and sends nothing."""


def hung_after_the_head(exchange: Exchange) -> None:
    exchange.begin()


def keeps_alive_only(exchange: Exchange) -> None:
    exchange.begin()
    exchange.part(b": keep-alive\n\n")


def half_a_json(exchange: Exchange) -> None:
    exchange.begin()
    exchange.part(b'data: {"choices": [{"ind\n\n')


def no_http(exchange: Exchange) -> None:
    exchange.transport.write(b"SSH-2.0-OpenSSH_9.2\r\n")


def wrong_content_type(exchange: Exchange) -> None:
    exchange.begin("text/html")
    exchange.part(b"<h1>Welcome</h1>")


def ends_early(exchange: Exchange) -> None:
    exchange.begin()
    exchange.part(b"data: [DONE]\n\n")


def killed(exchange: Exchange) -> None:
    exchange.begin()
    exchange.transport.close()


def broken(exchange: Exchange) -> None:
    exchange.answer(500, b"Internal Server Error")


def error_event(exchange: Exchange) -> None:
    exchange.begin()
    error = {"error": {"message": "a secret", "type": "InternalServerError", "code": 500}}
    exchange.part(b"data: %b\n\n" % json.dumps(error).encode())


def full(exchange: Exchange) -> None:
    exchange.answer(503, retry_after="7")


def limited(exchange: Exchange) -> None:
    exchange.answer(429, b'{"error": {"message": "slow down"}}', retry_after="7")


def of_another_choice(exchange: Exchange) -> None:
    exchange.begin()
    exchange.tokens([98], index=9)


BEFORE = [hung, hung_after_the_head, keeps_alive_only, half_a_json, no_http, wrong_content_type,
          ends_early, killed, broken, error_event, full, limited, of_another_choice]  # fmt: skip


HUNG = (hung, hung_after_the_head, keeps_alive_only)


def expire(engine: RemoteEngine) -> None:
    """Let the time limit of every running attempt pass."""
    for generation in engine._generations:
        for attempt in set(generation._attempts.values()):
            attempt._heard_s = -1e9
            attempt._look_back()


async def posted(
    engine: RemoteEngine, body: dict[str, Any], bad: StandIn, *, hangs: bool, after_tokens: int = 0
) -> Reply:
    """Returns the answer to a request; if the upstream hangs, its time limit passes at once."""
    run = asyncio.ensure_future(client_of(engine).post(PATH, body))
    if hangs:
        await bad.until_asked(1)
        while engine.counts.generated_tokens < after_tokens:
            await asyncio.sleep(0)
        expire(engine)
    return await run


def client_of(engine: RemoteEngine) -> Client:
    return make_client({"toy": engine})


def error_of(body: bytes) -> dict[str, Any]:
    """Returns the error in a whole answer, or in the last event of a stream."""
    text = body.removesuffix(b"\n\n").rsplit(b"\n\n", 1)[-1].removeprefix(b"data: ")
    error: dict[str, Any] = json.loads(text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", BEFORE)
async def test_a_fault_before_the_first_token_is_an_error(
    front: Front, fault: Callable[[Exchange], None], stream: bool
) -> None:
    async with StandIn(fault) as upstream:
        body = {**BODY, "stream": stream}
        reply = await posted(front(upstream), body, upstream, hangs=fault in HUNG)
        assert error_of(reply.body)["type"] == "server_error"
        assert b"secret" not in reply.body
        assert b"127.0.0.1" not in reply.body
        if reply.status == 200:
            assert stream
            assert b"[DONE]" not in reply.body
        else:
            assert reply.status in {500, 502, 503}
        assert len(upstream.bodies) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", BEFORE)
async def test_a_fault_before_the_first_token_is_retried_elsewhere(
    front: Front, fault: Callable[[Exchange], None], stream: bool
) -> None:
    async with StandIn(fault) as bad, StandIn() as good:
        body = {**BODY, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        reply = await posted(front(bad, good), body, bad, hangs=fault in HUNG)
        if stream:
            chunks = chunks_of(reply.body)
            text = "".join(c["choices"][0]["text"] for c in chunks if c["choices"])
            usage = chunks[-1]["usage"]
        else:
            text, usage = reply.json()["choices"][0]["text"], reply.json()["usage"]
        assert text == "bbb"
        assert usage["completion_tokens"] == 3
        assert usage["prompt_tokens"] == 1
        assert (len(bad.bodies), len(good.bodies)) == (1, 1)
        assert bad.bodies == good.bodies


async def test_a_refused_connection(front: Front) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"vllm+http://127.0.0.1:{closed.getsockname()[1]}/v1"
        alone = front(nobody)
        assert (await client_of(alone).post(PATH, BODY)).status == 503
        assert not alone.healthy()
        again = await client_of(alone).post(PATH, BODY)
        assert again.status == 503
        assert again.headers["retry-after"] == "1"
        async with StandIn() as good:
            answer = await client_of(front(nobody, good)).complete(prompt=[97], max_tokens=3)
            assert answer["choices"][0]["text"] == "bbb"


def one_token_then(fault: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
    def behave(exchange: Exchange) -> None:
        exchange.begin()
        exchange.tokens([98])
        fault(exchange)

    return behave


AFTER = {
    "hung": hung,
    "killed": lambda exchange: exchange.transport.close(),
    "half": lambda exchange: exchange.part(b'data: {"choices": [{"ind\n\n'),
    "no json": lambda exchange: exchange.part(b"data: NaN\n\n"),
    "an answer that ends without its end": lambda exchange: exchange.transport.write(b"0\r\n\r\n"),
    "no chunk": lambda exchange: exchange.transport.write(b"zzz\r\n"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", AFTER)
async def test_a_fault_in_the_middle_is_never_tried_again(
    front: Front, fault: str, stream: bool
) -> None:
    async with StandIn(one_token_then(AFTER[fault])) as bad, StandIn() as good:
        body = {**BODY, "stream": stream}
        engine = front(bad, good)
        reply = await posted(engine, body, bad, hangs=fault == "hung", after_tokens=1)
        assert error_of(reply.body)["type"] == "server_error"
        assert (len(bad.bodies), len(good.bodies)) == (1, 0)
        if stream:
            assert reply.status == 200
            assert b"[DONE]" not in reply.body
            first = json.loads(reply.body.split(b"\n\n")[0][6:])
            assert first["choices"][0]["text"] == "b"
        else:
            assert reply.status == 502


@pytest.mark.parametrize("stream", [False, True])
async def test_only_the_end_of_the_answer_is_missing(front: Front, stream: bool) -> None:
    def complete(exchange: Exchange) -> None:
        exchange.begin()
        exchange.tokens([98, 98])
        exchange.tokens([98], "length")
        exchange.transport.close()

    async with StandIn(complete) as upstream:
        reply = await client_of(front(upstream)).post(PATH, {**BODY, "stream": stream})
        assert reply.status == 200
        answer = fold(chunks_of(reply.body), usage=False) if stream else reply.json()
        (choice,) = answer["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("bbb", "length")


async def test_what_was_used_is_counted_once_when_it_breaks(front: Front) -> None:
    """The ledger settles the usage of the tokens that arrived."""
    async with StandIn(one_token_then(AFTER["killed"])) as bad, StandIn() as good:
        client = client_of(front(bad, good))
        await client.post(PATH, {**BODY, "stream": True})
        text = (await client.get("/metrics")).body.decode()
        assert 'afterword_completion_tokens_total{model="toy"} 1.0' in text
        assert 'afterword_prompt_tokens_total{model="toy"} 1.0' in text


async def test_a_request_that_is_wrong_is_not_tried_elsewhere(front: Front) -> None:
    def refuse(exchange: Exchange) -> None:
        error = {"message": "max_tokens is odd", "type": "BadRequestError", "param": "max_tokens",
                 "code": 400}  # fmt: skip
        exchange.answer(400, json.dumps({"error": error}).encode())

    async with StandIn(refuse) as one, StandIn() as other:
        error = await client_of(front(one, other)).refuse(prompt=[97], max_tokens=3)
        assert error["message"] == "max_tokens is odd"
        assert error["param"] == "max_tokens"
        assert error["code"] is None
        assert not other.bodies


async def test_too_long_for_the_upstream_is_too_long_here(front: Front) -> None:
    def refuse(exchange: Exchange) -> None:
        said = b'{"message": "This model\'s maximum context length is 9 tokens.", "code": 400}'
        exchange.answer(400, said)

    async with StandIn(refuse) as upstream:
        error = await client_of(front(upstream)).refuse(prompt=[97], max_tokens=3)
        assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("skew_s", [0, -(10**9), 10**9])
async def test_retry_after_is_held_against_the_upstreams_own_clock(
    front: Front, skew_s: int
) -> None:
    now_s = 1_800_000_000 + skew_s

    def rest(exchange: Exchange) -> None:
        exchange.answer(503, date=formatdate(now_s, usegmt=True),
                        retry_after=formatdate(now_s + 20, usegmt=True))  # fmt: skip

    async with StandIn(rest) as upstream:
        client = client_of(front(upstream))
        reply = await client.post(PATH, BODY)
        assert reply.status == 503
        assert reply.error["code"] == "engine_overloaded"
        assert 18 <= int(reply.headers["retry-after"]) <= 20
        # The upstream gets no request before that time.
        assert (await client.post(PATH, BODY)).status == 503
        assert len(upstream.bodies) == 1


@pytest.mark.parametrize(
    "rest",
    [
        b"\xb2", b"9" * 5000, b"Fri, 01 Jan 999999999999 00:00:00 GMT", b"-5", b"1e3", b"nan", b"",
        b"Fri, 99 Jan 2026 99:99:99 GMT", b"Fri, 01 Jan 2026 00:00:00 +99999999", b"1, 2",
    ],
)  # fmt: skip
async def test_retry_after_may_be_anything(front: Front, rest: bytes) -> None:
    """The request ends at once, with the error of a server that is full."""

    def behave(exchange: Exchange) -> None:
        exchange.transport.write(
            b"HTTP/1.1 503 X\r\ndate: Fri, 01 Jan 2026 00:00:00 GMT\r\nretry-after: %b\r\n"
            b"content-length: 0\r\n\r\n" % rest
        )

    async with StandIn(behave) as upstream:
        reply = await client_of(front(upstream)).post(PATH, BODY)
        assert reply.status == 503
        assert reply.error["code"] == "engine_overloaded"
        assert 1 <= int(reply.headers["retry-after"]) <= 60


async def test_a_full_upstream_is_waited_for(front: Front) -> None:
    answers = [full, Exchange.whole]

    def behave(exchange: Exchange) -> None:
        if len(answers) > 1:
            answers.pop(0)
            exchange.answer(503, retry_after="0")
        else:
            exchange.whole()

    async with StandIn(behave) as upstream:
        engine = front(upstream, options=hasty(patience_s=5))
        answer = await client_of(engine).complete(prompt=[97], max_tokens=3)
        assert answer["choices"][0]["text"] == "bbb"
        assert len(upstream.bodies) == 2


@pytest.mark.parametrize(
    "error",
    [
        {"code": 429},
        {"code": "503"},
        {"code": "rate_limit_exceeded"},
        {"code": "engine_overloaded", "type": "server_error"},
        {"type": "overloaded_error", "code": ["x"]},
    ],
)
async def test_one_that_says_in_its_stream_that_it_is_full_is_left_alone(
    front: Front, error: dict[str, Any]
) -> None:
    """It does not count as down, however often it says so."""

    def behave(exchange: Exchange) -> None:
        exchange.begin()
        exchange.part(b"data: %b\n\n" % json.dumps({"error": {"message": "x", **error}}).encode())

    async with StandIn(behave) as upstream:
        engine = front(upstream)
        for _ in range(4):
            reply = await client_of(engine).post(PATH, BODY)
            assert (reply.status, reply.error["code"]) == (503, "engine_overloaded")
            assert int(reply.headers["retry-after"]) >= 1
            (behind,) = engine.pool.upstreams
            assert behind.up
            behind.resting_until_s = 0.0


async def test_the_waiting_line_is_limited(front: Front) -> None:
    async with StandIn(hung) as upstream:
        client = client_of(front(upstream, max_waiting=2))
        begun = [client.begin(BODY) for _ in range(2)]
        await upstream.until_asked(2)
        refused = await client.post(PATH, BODY)
        assert refused.status == 503
        assert refused.error["code"] == "engine_overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        for exchange, run in begun:
            exchange.leave.set()
            await run


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("behaviour", [hung, one_token_then(hung)])
async def test_a_client_that_leaves_is_noticed_upstream_at_once(
    front: Front, behaviour: Callable[[Exchange], None], stream: bool
) -> None:
    """Both ends run on one event loop, whose clock measures the time."""
    async with StandIn(behaviour) as upstream:
        engine = front(upstream)
        client = client_of(engine)
        exchange, run = client.begin({**BODY, "stream": stream})
        await upstream.until_asked(1)
        if stream and behaviour is not hung:
            await exchange.frames(1)
        loop = asyncio.get_running_loop()
        left_s = loop.time()
        exchange.leave.set()
        await upstream.connections[-1].gone.wait()
        assert loop.time() - left_s < 0.1
        await run
        assert engine.pool.upstreams[0].outstanding_tokens == 0
        assert engine.stats().running_sequences + engine.stats().waiting_sequences == 0


async def test_a_stop_ends_the_upstreams_work(front: Front) -> None:
    def behave(exchange: Exchange) -> None:
        exchange.begin()
        exchange.tokens([97])
        exchange.tokens([98])

    async with StandIn(behave) as upstream:
        answer = await client_of(front(upstream)).complete(prompt=[97], stop="b")
        assert answer["choices"][0]["text"] == "a"
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 2
        await upstream.connections[-1].gone.wait()


async def test_an_idle_connection_that_was_closed_is_no_fault(front: Front) -> None:
    async with StandIn() as upstream:
        client = client_of(front(upstream))
        await client.complete(prompt=[97], max_tokens=3)
        upstream.connections[0].transport.abort()
        await upstream.connections[0].gone.wait()
        await client.complete(prompt=[97], max_tokens=3)
        # The client does not know yet that this connection is closed.
        upstream.connections[1].transport.abort()
        await client.complete(prompt=[97], max_tokens=3)
        assert len(upstream.connections) == 3


async def test_connections_are_used_again(front: Front) -> None:
    async with StandIn() as upstream:
        client = client_of(front(upstream))
        for _ in range(5):
            await client.complete(prompt=[97], max_tokens=3)
        assert len(upstream.connections) == 1


async def test_an_end_that_never_comes_is_not_waited_for(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    def behave(exchange: Exchange) -> None:
        exchange.begin()
        exchange.tokens([98, 98, 98], "length")

    monkeypatch.setattr("afterword.gateway.pool.attempt._LINGER_S", 0.01)
    async with StandIn(behave) as upstream:
        answer = await client_of(front(upstream)).complete(prompt=[97], max_tokens=3)
        assert answer["choices"][0]["text"] == "bbb"


async def test_an_end_token_that_nobody_declared_ends_a_choice(front: Front) -> None:
    """Its name is a token of the log-probabilities and not in the text (A4)."""

    def behave(exchange: Exchange) -> None:
        exchange.begin()
        exchange.tokens([98])
        exchange.tokens([99], "stop")
        exchange.end()

    async with StandIn(behave) as upstream:
        answer = await client_of(front(upstream)).complete(prompt=[97], max_tokens=3)
        assert answer["choices"][0]["text"] == "b"
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 2


async def test_many_prompts_are_sent_a_few_at_a_time(front: Front) -> None:
    async with StandIn() as upstream:
        client = client_of(front(upstream))
        answer = await client.complete(prompt=[[97]] * 200, max_tokens=3)
        assert [c["text"] for c in answer["choices"]] == ["bbb"] * 200
        assert answer["usage"]["completion_tokens"] == 600
        assert len(upstream.connections) <= 64
