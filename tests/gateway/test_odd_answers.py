"""Odd answers: what can be read is delivered, the rest is refused, and no address is taken out."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from afterword.core.job import Job, SamplingParams
from afterword.core.limits import Limits
from afterword.gateway.dialects.dialect import UNKNOWN_CONTEXT, Facts
from afterword.gateway.engine import RemoteEngine
from afterword.gateway.failures import StreamBroke
from afterword.gateway.pool.attempt import Attempt
from afterword.http.middleware import AccessRecord
from conftest import make_client
from standins.server import FACTS, Exchange, StandIn
from standins.upstreams import PATIENT, engine_of
from support.asgi import Reply, chunks_of

HOSTED = Facts(model="gpt", context_tokens=UNKNOWN_CONTEXT, max_logprobs=5, identity="x")
PATH = "/v1/completions"
BODY: dict[str, Any] = {"model": "toy", "prompt": "a longer prompt", "max_tokens": 9}
LAST = {"index": 0, "text": "b", "finish_reason": "stop"}
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


class Behind:
    """One hosted endpoint that answers every request with the same bytes."""

    def __init__(self, upstream: StandIn, engine: RemoteEngine) -> None:
        self.upstream = upstream
        self.engine = engine
        self.client = make_client({"toy": engine}, limits=Limits(max_logprobs=10))

    async def ask(self, answer: Callable[[Exchange], None], **more: Any) -> Reply:
        self.upstream.behaviour = answer
        return await self.client.post(PATH, {**BODY, **more})

    async def whole(self, answer: Callable[[Exchange], None], **more: Any) -> dict[str, Any]:
        """The answer to a request, which must be the same streamed and not; nobody rests."""
        reply = await self.ask(answer, **more)
        assert reply.status == 200, reply.body
        streamed = await self.ask(
            answer, stream=True, stream_options={"include_usage": True}, **more
        )
        chunks = chunks_of(streamed.body)
        whole: dict[str, Any] = reply.json()
        for choice in whole["choices"]:
            parts = [c["choices"][0] for c in chunks if c["choices"]]
            text = "".join(p["text"] for p in parts if p["index"] == choice["index"])
            assert text == choice["text"]
        assert chunks[-1]["usage"] == whole["usage"]
        assert self.engine.pool.upstreams[0].up
        return whole

    async def refused(self, answer: Callable[[Exchange], None], **more: Any) -> dict[str, Any]:
        """The error of an answer that cannot be read: a 502 of ours, and nobody rests.

        An error of the upstream's own is a 500, with the request's id (H10).
        """
        reply = await self.ask(answer, **more)
        assert reply.error["type"] == "server_error"
        if reply.status == 500:
            assert "request id" in reply.error["message"]
        else:
            assert reply.status == 502, reply.body
            assert reply.error["code"] == "upstream_failed"
        assert self.engine.pool.upstreams[0].up
        return reply.error

    async def under_way(self, asked: int) -> tuple[asyncio.Future[Reply], Attempt]:
        """Returns a request that waits for its answer, as the ``asked``-th, and how it is read."""
        run = asyncio.ensure_future(self.client.post(PATH, BODY))
        await self.upstream.until_asked(asked)
        (generation,) = self.engine._generations
        (attempt,) = set(generation._attempts.values())
        return run, attempt


@pytest.fixture
async def behind() -> AsyncIterator[Behind]:
    async with StandIn() as upstream:
        engine = engine_of(upstream.address.replace("vllm+", "openai+"), [HOSTED])
        yield Behind(upstream, engine)
        await engine.aclose()


@pytest.fixture
async def vllm() -> AsyncIterator[Behind]:
    async with StandIn() as upstream:
        engine = engine_of(upstream.address, [FACTS])
        made = Behind(upstream, engine)
        yield made
        await engine.aclose()


def events(*payloads: object, done: bool = True) -> Callable[[Exchange], None]:
    """A stream of these payloads; bytes are sent as they are."""

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        for payload in payloads:
            said = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
            exchange.part(b"data: %b\n\n" % said)
        if done:
            exchange.part(b"data: [DONE]\n\n")
        exchange.transport.write(b"0\r\n\r\n")

    return answer


def choices(*given: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"choices": list(given), **more}


def raw(*parts: bytes, close: bool = False) -> Callable[[Exchange], None]:
    """An answer of these bytes, each in a write of its own."""

    def answer(exchange: Exchange) -> None:
        for part in parts:
            exchange.transport.write(part)
        if close:
            exchange.transport.close()

    return answer


def sized(head: bytes, body: bytes) -> bytes:
    return head + b"content-length: %d\r\n\r\n%b" % (len(body), body)


def stream_of(*payloads: object) -> bytes:
    said = [p if isinstance(p, bytes) else json.dumps(p).encode() for p in payloads]
    return b"".join(b"data: %b\n\n" % one for one in said)


GOOD = stream_of(choices({"index": 0, "text": "b", "finish_reason": "stop"}), b"[DONE]")


PLAIN = json.dumps(choices({**LAST, "index": 0.0, "finish_reason": None})).encode()
READABLE = {
    "content_filter": (events(choices({**LAST, "finish_reason": "content_filter"})), "b", "stop"),
    "unknown reason": (events(choices({**LAST, "finish_reason": "repetition"})), "b", "stop"),
    "reason is a number": (events(choices({**LAST, "finish_reason": 1})), "b", "stop"),
    "no reason as text": (
        events(choices({"index": 0, "text": "a", "finish_reason": "null"}), choices(LAST)),
        "ab", "stop",
    ),
    "None as text": (
        events(choices({"index": 0, "text": "a", "finish_reason": "None"}), choices(LAST)),
        "ab", "stop",
    ),
    "reason 0": (
        events(choices({"index": 0, "text": "a", "finish_reason": 0}), choices(LAST)), "ab", "stop",
    ),
    "reason is an empty object": (
        events(choices({"index": 0, "text": "a", "finish_reason": {}}), choices(LAST)),
        "ab", "stop",
    ),
    "length in capitals": (
        events(choices({**LAST, "finish_reason": "MAX_TOKENS"})), "b", "length",
    ),
    "reason in capitals": (events(choices({**LAST, "finish_reason": "STOP"})), "b", "stop"),
    "empty reason first": (
        events(choices({"index": 0, "text": "a", "finish_reason": ""}), choices(LAST)),
        "ab", "stop",
    ),
    "empty reason only": (events(choices({**LAST, "finish_reason": ""})), "b", "stop"),
    "no reason": (events(choices({"index": 0, "text": "b"})), "b", "stop"),
    "no reason at the limit": (
        events(*[choices({"index": 0, "text": "b"})] * 9), "b" * 9, "length",
    ),
    "false reason": (events(choices({**LAST, "finish_reason": False})), "b", "stop"),
    "index 0.0": (events(choices({**LAST, "index": 0.0})), "b", "stop"),
    "no index": (events(choices({"text": "b", "finish_reason": "stop"})), "b", "stop"),
    "null index": (events(choices({**LAST, "index": None})), "b", "stop"),
    "index false": (events(choices({**LAST, "index": False})), "b", "stop"),
    "index text": (events(choices({**LAST, "index": "0"})), "b", "stop"),
    "null text": (events(choices({"index": 0, "text": None}), choices(LAST)), "b", "stop"),
    "no text": (events(choices({"index": 0}), choices(LAST)), "b", "stop"),
    "a delta beside text": (events(choices({**LAST, "delta": {}})), "b", "stop"),
    "a message beside choices": (events({**choices(LAST), "message": "fine"}), "b", "stop"),
    "null text only": (events(choices({**LAST, "text": None})), "", "stop"),
    "null choices": (events({"choices": None}, choices(LAST)), "b", "stop"),
    "no choices": (events({"id": "x"}, choices(LAST)), "b", "stop"),
    "null error": (events(choices(LAST, error=None)), "b", "stop"),
    "empty error": (events(choices(LAST, error={})), "b", "stop"),
    "null logprobs": (events(choices({**LAST, "logprobs": None})), "b", "stop"),
    "logprobs of no length": (
        events(choices({**LAST, "logprobs": {"tokens": ["x", "y"], "token_logprobs": [-1.0]}})),
        "b", "stop",
    ),
    "odd logprobs": (events(choices({**LAST, "logprobs": {"tokens": None}})), "b", "stop"),
    "NaN": (
        events(b'{"choices":[{"index":0,"text":"b","finish_reason":"stop","score":NaN}]}'),
        "b", "stop",
    ),
    "Infinity": (
        events(b'{"x":-Infinity,"choices":[{"index":0,"text":"b","finish_reason":"stop"}]}'),
        "b", "stop",
    ),
    "a number of 5,000 digits": (
        events(b'{"x":%b,"choices":[{"index":0,"text":"b","finish_reason":"stop"}]}'
               % (b"9" * 5000)),
        "b", "stop",
    ),
    "bytes that are not UTF-8": (
        events(b'{"choices":[{"index":0,"text":"b\xff","finish_reason":"stop"}]}'),
        "b\ufffd", "stop",
    ),
    "half a pair": (
        events(b'{"choices":[{"index":0,"text":"b\\ud83d","finish_reason":"stop"}]}'),
        "b\ufffd", "stop",
    ),
    "a whole pair": (
        events(b'{"choices":[{"index":0.0,"text":"b\\ud83d\\ude42","finish_reason":"stop"}]}'),
        "b🙂", "stop",
    ),
    "duplicate keys": (
        events(b'{"choices":[{"index":0,"text":"a","text":"b","finish_reason":"stop"}]}'),
        "b", "stop",
    ),
    "unknown keys": (events(choices({**LAST, "x": {"y": [1]}}, z=1)), "b", "stop"),
    "an event of spaces": (events(b"", b"  ", choices(LAST)), "b", "stop"),
    "no [DONE]": (events(choices(LAST), done=False), "b", "stop"),
    "[DONE] with spaces": (events(choices(LAST), b"[DONE] ", done=False), "b", "stop"),
    "more after the end": (events(choices(LAST), choices({**LAST, "text": "c"})), "b", "stop"),
    "nonsense after the end": (events(choices(LAST), b"{", b"<html>"), "b", "stop"),
    "after [DONE]": (events(choices(LAST), b"[DONE]", choices({**LAST, "text": "c"})), "b", "stop"),
    "a reason of an end by length": (events(choices({**LAST, "finish_reason": "limit"})), "b",
                                     "length"),
    "a byte order mark": (raw(SSE + b"\r\n\xef\xbb\xbf" + GOOD, close=True), "b", "stop"),
    "a mark in pieces": (raw(SSE + b"\r\n\xef", b"\xbb", b"\xbf" + GOOD, close=True), "b", "stop"),
    "blank lines first": (raw(SSE + b"\r\n\r\n\n" + GOOD, close=True), "b", "stop"),
    "comments and fields": (
        raw(SSE + b"\r\n: hello\n\nevent: completion\nid: 7\nretry: 5\n" + GOOD, close=True),
        "b", "stop",
    ),
    "CRLF": (raw(SSE + b"\r\n" + GOOD.replace(b"\n", b"\r\n"), close=True), "b", "stop"),
    "CR": (raw(SSE + b"\r\n" + GOOD.replace(b"\n", b"\r"), close=True), "b", "stop"),
    "several lines": (
        raw(SSE + b"\r\n" + GOOD.replace(b'"choices"', b'\ndata: "choices"'), close=True),
        "b", "stop",
    ),
    "no blank line at the end": (raw(SSE + b"\r\n" + GOOD[:-2], close=True), "b", "stop"),
    "no space after the colon": (raw(SSE + b"\r\n" + GOOD.replace(b"data: ", b"data:"), close=True),
                                 "b", "stop"),
    "HTTP/1.0": (raw(b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + GOOD,
                     close=True), "b", "stop"),
    "no reason phrase": (raw(sized(b"HTTP/1.1 200\r\n", GOOD)), "b", "stop"),
    "another content type": (raw(sized(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n", GOOD)),
                             "b", "stop"),
    "events called JSON": (
        raw(sized(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n", GOOD)), "b", "stop",
    ),
    "a plain answer": (raw(sized(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=utf-8\r\n",
        json.dumps(choices(LAST, object="text_completion"), indent=1).encode(),
    )), "b", "stop"),
    "a plain answer called events": (
        raw(sized(SSE, b"\xef\xbb\xbf\r\n " + json.dumps(choices(LAST)).encode())), "b", "stop",
    ),
    "a plain answer in pieces": (
        raw(SSE + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n{\r\n",
            b"%x\r\n%b\r\n" % (len(PLAIN) - 1, PLAIN[1:]),
            b"0\r\n\r\n"),
        "b", "stop",
    ),
    "interim answers": (
        raw(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\n\r\n" + sized(SSE, GOOD)),
        "b", "stop",
    ),
    "identity": (raw(sized(SSE + b"content-encoding: identity\r\n", GOOD)), "b", "stop"),
    "blanks behind headers": (
        raw(SSE + b"content-encoding: identity \t\r\ntransfer-encoding: chunked \r\n\r\n"
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)),
        "b", "stop",
    ),
    "trailers": (
        raw(SSE + b"transfer-encoding: Chunked\r\n\r\n%x\r\n%b\r\n0\r\nx: y\r\n\r\n"
            % (len(GOOD), GOOD)),
        "b", "stop",
    ),
    "chunk extensions": (
        raw(SSE + b"transfer-encoding: chunked\r\n\r\n%x;a=b\r\n%b\r\n0\r\n\r\n"
            % (len(GOOD), GOOD)),
        "b", "stop",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READABLE)
async def test_what_can_be_read_is_delivered(behind: Behind, case: str) -> None:
    answer, text, reason = READABLE[case]
    whole = await behind.whole(answer)
    (choice,) = whole["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text, reason)
    tokens = {"ab": 2, "b" * 9: 9}.get(text, int(text != ""))
    assert whole["usage"]["completion_tokens"] == tokens


BIG = b"x" * (1 << 20)
UNREADABLE = {
    "[DONE] alone": events(),
    "nothing": events(done=False),
    "no body": raw(sized(SSE, b"")),
    "blanks": raw(sized(SSE, b" \r\n \n")),
    "blanks without end": raw(SSE + b"\r\n", *[b"\n" * 4096] * 17),
    "a page": raw(sized(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n", b"<html>hi</html>")),
    "a page called events": raw(sized(SSE, b"\n<!doctype html>")),
    "text": raw(sized(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n", b"Welcome!")),
    "half an event": events(b'{"choices": [{"ind', done=False),
    "a list": events([choices(LAST)]),
    "a number": events(b"NaN"),
    "a word": events(b'"b"'),
    "choices are text": events({"choices": "b"}),
    "choices are an object": events({"choices": LAST}),
    "a choice is null": events({"choices": [None]}),
    "a choice is a number": events({"choices": [1]}),
    "text is a number": events(choices({**LAST, "text": 5})),
    "text is a list": events(choices({**LAST, "text": ["b"]})),
    "index out of range": events(choices({**LAST, "index": 1})),
    "negative index": events(choices({**LAST, "index": -1})),
    "endless index": events(choices({**LAST, "index": 2**70})),
    "given up": events(choices({**LAST, "finish_reason": "abort"})),
    "given up in capitals": events(choices({**LAST, "finish_reason": "ABORT"})),
    "given up with an error": events(choices({**LAST, "finish_reason": "error"})),
    "no reason and no [DONE]": events(choices({"index": 0, "text": "b"}), done=False),
    "no token and no reason": events(choices({"index": 0, "text": ""})),
    "an error": events({"error": {"message": "secret"}}),
    "an error as text": events({"error": "secret"}),
    "an old error": events({"object": "error", "message": "secret", "code": 500}),
    "a chat": events(choices({"index": 0, "delta": {"content": "b"}, "finish_reason": None}),
                     choices({"index": 0, "delta": {}, "finish_reason": "stop"})),
    "a plain chat": raw(sized(SSE, json.dumps(
        choices({"index": 0, "message": {"content": "b"}, "finish_reason": "stop"})
    ).encode())),
    "an error without its name": events(
        choices({"index": 0, "text": "b"}), {"message": "secret", "code": 500}
    ),
    "a detail": events(choices({"index": 0, "text": "b"}), {"detail": "secret"}),
    "an event called error": raw(
        sized(SSE, stream_of(choices({"index": 0, "text": "b"}))
              + b'event: error\ndata: {"message": "secret"}\n\ndata: [DONE]\n\n')
    ),
    "an event called error with text": raw(
        sized(SSE, stream_of(choices({"index": 0, "text": "b"}))
              + b"data: secret\r\nevent:error\r\n\r\ndata: [DONE]\n\n")
    ),
    "an error of llama-server up to 2025": raw(
        sized(SSE, stream_of(choices({"index": 0, "text": "b"}))
              + b'error: {"code":500,"message":"secret","type":"server_error"}\n\n')
    ),
    "a plain error": raw(sized(SSE, b'{"error": {"message": "secret", "code": 500}}')),
    "a plain answer of nothing": raw(sized(SSE, b"{}")),
    "a plain list": raw(sized(SSE, b"[]")),
    "half a plain answer": raw(sized(SSE, b'{"choices": [')),
    "a plain answer without end": raw(SSE + b"\r\n{", *[BIG] * 2),
    "an event without end": raw(SSE + b"\r\ndata: {", *[BIG] * 2),
    "a comment without end": raw(SSE + b"\r\n: ", *[BIG] * 2),
    "nested too deep": events(b'{"choices":' + b"[" * 100_000),
    "nested too deep, with NaN": events(b'{"x":NaN,"y":' + b"[" * 800 + b"]" * 800 + b"}"),
    "a head without end": raw(SSE, *[b"x: %b\r\n" % (b"y" * 4000)] * 20),
    "a header without end": raw(SSE + b"x: ", *[b"y" * 4096] * 17),
    "a head of 70 KB at once": raw(SSE + b"x: y\r\n" * 12_000 + b"content-length: 0\r\n\r\n"),
    "interim answers without end": raw(*[b"HTTP/1.1 103 Early Hints\r\nx: %b\r\n\r\n"
                                         % (b"y" * 4000)] * 20),
    "trailers without end": raw(SSE + b"transfer-encoding: chunked\r\n\r\n0\r\n",
                                *[b"x: %b\r\n" % (b"y" * 4000)] * 20),
    "a chunk size without end": raw(SSE + b"transfer-encoding: chunked\r\n\r\n1;",
                                    *[b"x" * 4096] * 17),
    "compressed": raw(sized(SSE + b"content-encoding: gzip\r\n", b"\x1f\x8b\x08" + GOOD)),
    "compressed in transfer": raw(SSE + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "not chunked": raw(SSE + b"transfer-encoding: identity\r\n\r\n" + GOOD, close=True),
    "chunked twice": raw(SSE + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n"
                         b"0\r\n\r\n"),
    "two lengths": raw(SSE + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab"),
    "a length and chunks": raw(SSE + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"),
    "a negative length": raw(SSE + b"content-length: -5\r\n\r\n"),
    "less than its length": raw(SSE + b"content-length: 900\r\n\r\n" + GOOD[:30], close=True),
    "another protocol": raw(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n"
                            b"connection: upgrade\r\n\r\n"),
    "a status of no meaning": raw(sized(b"HTTP/1.1 999 X\r\n", b"")),
    "a redirect": raw(sized(b"HTTP/1.1 307 X\r\nlocation: http://secret/\r\n", b"")),
    "no content": raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "an error without end": raw(b"HTTP/1.1 500 X\r\n\r\n", *[b"y" * 4096] * 17),
    "a broken head": raw(SSE, close=True),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
async def test_what_cannot_be_read_is_refused_and_rests_nobody(behind: Behind, case: str) -> None:
    error = await behind.refused(UNREADABLE[case])
    own = case in {
        "a redirect", "no content", "a status of no meaning", "an error", "an error as text",
        "an old error", "a plain error", "an error without end", "an event called error",
        "an event called error with text", "an error without its name", "a detail",
        "an error of llama-server up to 2025",
    }  # fmt: skip
    assert ("request id" in error["message"]) == own
    assert "secret" not in json.dumps(error)
    assert "127.0.0.1" not in error["message"]
    # The next request is served as if nothing had been.
    assert (await behind.whole(events(choices(LAST))))["choices"][0]["text"] == "b"


async def test_text_before_a_broken_event_is_delivered(behind: Behind) -> None:
    answer = events(choices({"index": 0, "text": "b"}), b"{", choices(LAST))
    streamed = await behind.ask(answer, stream=True)
    first, error = streamed.body.removesuffix(b"\n\n").split(b"\n\n")
    assert json.loads(first[6:])["choices"][0]["text"] == "b"
    assert json.loads(error[6:])["error"]["code"] == "upstream_failed"
    assert behind.engine.pool.upstreams[0].up


async def test_repeated_failures_take_an_address_out(behind: Behind) -> None:
    """A success in between starts the count again."""
    upstream = behind.engine.pool.upstreams[0]
    for _ in range(2):
        await behind.ask(events())
        assert upstream.up
    await behind.whole(events(choices(LAST)))
    for up in (True, True, False):
        await behind.ask(events())
        assert upstream.up is up
    await behind.engine.pool.probe(upstream)
    assert upstream.up


@pytest.mark.parametrize(
    "said",
    [{"error": {"message": "Too long.", "code": 400}},
     {"object": "error", "message": "Too long.", "code": 400},
     {"object": "error", "message": "", "code": 400}],
)  # fmt: skip
async def test_a_fault_of_the_request_is_the_clients(behind: Behind, said: dict[str, Any]) -> None:
    reply = await behind.ask(events(said))
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("answer", [
    events(choices(LAST)),
    events(choices({**LAST, "logprobs": {"content": []}})),
    events(choices({**LAST, "logprobs": {"tokens": ["b"], "token_logprobs": []}})),
])  # fmt: skip
async def test_what_an_endpoint_leaves_out_takes_it_out_for_nobody(
    behind: Behind, answer: Callable[[Exchange], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Or a client that asks for it, some times in a row, would stop all others."""
    with caplog.at_level(logging.WARNING, "afterword.upstream"):
        for _ in range(5):
            await behind.refused(answer, logprobs=1)
    (said,) = [record.getMessage() for record in caplog.records]
    assert " failed: " in said
    assert behind.engine.pool.upstreams[0].failed_in_a_row == 0


async def test_an_endpoint_that_ignores_n_stays(behind: Behind) -> None:
    for _ in range(5):
        error = await behind.refused(events(choices(LAST)), n=2)
        assert "fewer choices" in error["message"]
    # One that broke off in a choice is another matter.
    cut = events(choices(LAST), choices({"index": 1, "text": "a"}), done=False)
    for _ in range(3):
        await behind.ask(cut, n=2)
    assert not behind.engine.pool.upstreams[0].up


async def test_the_log_says_why_a_request_failed(
    behind: Behind, caplog: pytest.LogCaptureFixture
) -> None:
    """The first time, and again after another reason. The client learns less."""
    with caplog.at_level(logging.WARNING, "afterword.upstream"):
        for status in (401, 401, 500):
            reply = await behind.ask(partial(Exchange.answer, status=status))
            assert reply.status == 500
            behind.engine.pool.upstreams[0].answered()
    said = [
        record.getMessage().rpartition(" failed: ")[2]
        for record in caplog.records
        if record.name == "afterword.upstream"
    ]
    assert said == ["it does not accept this server's key", "it answered with status 500"]


TOO_LONG = (
    (400, {"error": {"code": 400, "type": "exceed_context_size_error", "message":
                     "the request exceeds the available context size, try increasing it"}}),
    (400, {"object": "error", "code": 400, "message":
           "The input (3000 tokens) is longer than the model's context length (2048 tokens)."}),
    (400, {"object": "error", "code": 400, "message":
           "Input length (99 tokens) exceeds the maximum allowed length (50 tokens)."}),
    (422, {"error_type": "validation", "error":
           "Input validation error: `inputs` must have less than 1024 tokens. Given: 3000"}),
    (422, {"error_type": "validation", "error":
           "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048."}),
)  # fmt: skip
"""Of llama-server, SGLang (twice), and text-generation-inference (twice)."""


@pytest.mark.parametrize(("status", "said"), TOO_LONG)
async def test_too_long_in_the_words_of_each_server(
    behind: Behind, status: int, said: dict[str, Any]
) -> None:
    """With the status, and in a stream that has begun with a 200."""
    text = json.dumps(said).encode()
    answers: list[Callable[[Exchange], None]] = [lambda exchange: exchange.answer(status, text)]
    answers.append(events(said))
    for answer in answers:
        reply = await behind.ask(answer)
        assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("said", [
    {"error": "Model is overloaded", "error_type": "overloaded"},
    {"error": {"message": "x", "type": "unavailable_error", "code": 503}},
    {"error": {"message": "x", "type": "overloaded_error"}},
    {"message": "x", "code": "rate_limit_exceeded"},
])  # fmt: skip
async def test_load_in_the_words_of_each_server(behind: Behind, said: dict[str, Any]) -> None:
    reply = await behind.ask(events(said))
    assert (reply.status, reply.error["code"]) == (503, "engine_overloaded")
    assert "retry-after" in reply.headers


@pytest.mark.parametrize(("said", "status", "code"), [
    ("Input validation error: `temperature` must be strictly positive", 400, None),
    ("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 20. Given: 9",
     400, "context_length_exceeded"),
    ("Tool error: no such tool", 400, None),
    ("Model is overloaded", 503, "engine_overloaded"),
    ("Request failed during generation: CUDA error", 500, None),
    ("Incomplete generation", 500, None),
    ("Incomplete generation stream", 500, None),
])  # fmt: skip
@pytest.mark.parametrize("begun", [False, True])
async def test_a_status_of_422_is_told_by_its_words(
    behind: Behind, begun: bool, said: str, status: int, code: str | None
) -> None:
    """text-generation-inference writes it into its streams for every error."""
    error = {"error": {"message": said, "http_status_code": 422}}
    parts = [choices({"index": 0, "text": "b"})] if begun else []
    reply = await behind.ask(events(*parts, error))
    if begun and status == 503:
        # Too late to go elsewhere.
        status, code = 502, "upstream_failed"
    assert (reply.status, reply.error["code"]) == (status, code)
    assert "CUDA" not in reply.error["message"]


@pytest.mark.parametrize(("said", "status"), [
    ({"error": {"message": "x", "code": 400}}, 400),
    ({"error": {"message": "x", "http_status_code": 422}}, 400),
    ({"error": "x", "error_type": "overloaded"}, 503),
    ({"error": "x"}, 500),
    ({"choices": 5}, 502),
])  # fmt: skip
async def test_S6_a_refusal_in_a_stream_is_one_before_the_status_line(
    behind: Behind, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], status: int
) -> None:
    """SGLang and text-generation-inference answer 200 and say in the first event what is wrong."""
    monkeypatch.setattr("afterword.gateway.pool.attempt._REFUSAL_S", 1e6)
    reply = await behind.ask(events(said), stream=True)
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"


async def test_S7_a_stream_that_has_begun_is_accepted_before_its_first_token(
    behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afterword.gateway.pool.attempt._REFUSAL_S", 0)
    job = Job(prompt_ids=b"ab", n=1, max_tokens=2, sampling=SamplingParams(), seed=1)
    for begun in (raw(SSE + b"\r\n"), raw(b"HTTP/1.1 200 OK\r\n\r\n: wait\n\n")):
        behind.upstream.behaviour = begun
        async with behind.engine.open([job]) as generation:
            assert not generation.begun


async def test_a_request_s_fault_of_llama_server_up_to_2025(behind: Behind) -> None:
    said = b'error: {"code":400,"message":"n must be at most 5","type":"invalid_request_error"}\n\n'
    reply = await behind.ask(raw(sized(SSE, said)))
    assert (reply.status, reply.error["message"]) == (400, "n must be at most 5")


async def test_several_choices_need_an_index(behind: Behind) -> None:
    good = events(choices({**LAST, "index": 1.0}), choices({**LAST, "index": 0, "text": "a"}))
    for index in (None, True, False, "1", 0.5, 2):
        assert [c["text"] for c in (await behind.whole(good, n=2))["choices"]] == ["a", "b"]
        last = choices({**LAST, "index": 1})
        await behind.refused(events(choices({**LAST, "index": index}), last), n=2)


async def test_a_choice_that_never_came_is_refused(behind: Behind) -> None:
    await behind.refused(events(choices(LAST)), n=2)


async def test_what_stands_in_no_stream_in_time_is_not_waited_for(
    behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All choices have ended; usage and the end of the answer never come."""
    monkeypatch.setattr("afterword.gateway.pool.attempt._LINGER_S", 0.01)

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.part(stream_of(choices(LAST)))

    assert (await behind.whole(answer))["choices"][0]["text"] == "b"


def counted(prompt: object, completion: object, **more: object) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


OWN_PROMPT, OWN = 4, 2
"""A token for four bytes of a prompt of 15, and a token for each of two chunks."""
USAGES = [
    (counted(7, 3), 7, 3),
    (counted(7.0, 3.0), 7, 3),
    (counted(None, None), OWN_PROMPT, OWN),
    ({}, OWN_PROMPT, OWN),
    (None, OWN_PROMPT, OWN),
    ("many", OWN_PROMPT, OWN),
    ([7, 3], OWN_PROMPT, OWN),
    (counted("7", "3"), OWN_PROMPT, OWN),
    ({"prompt_tokens": True, "completion_tokens": True}, OWN_PROMPT, OWN),
    (counted(7.5, 2.5), OWN_PROMPT, OWN),
    (counted(-1000000, -1000000), OWN_PROMPT, OWN),
    (counted(0, 0), OWN_PROMPT, OWN),
    (counted(10**19, 10**19), 15, 9),
    (counted(2**62, 2**62), 15, 9),
    (counted(10**400, 10**400), 15, 9),
    (counted(1e300, 1e300), 15, 9),
    (counted(16, 9), 15, 9),
    (counted(22, 2), 22, 2),
    (counted(23, 2), 22, 2),
    (counted(7, 3, prompt_tokens_details={"cached_tokens": 10**19}), 7, 3),
    (counted(7, 3, prompt_tokens_details={"cached_tokens": -4}), 7, 3),
    (counted(7, 3, prompt_tokens_details=[1]), 7, 3),
]


@pytest.mark.parametrize(("usage", "prompt", "completion"), USAGES)
@pytest.mark.parametrize("where", ["alone", "with the last choice", "with every choice"])
async def test_counts_are_believed_within_the_request(
    behind: Behind, usage: object, prompt: int, completion: int, where: str
) -> None:
    first, last = choices({"index": 0, "text": "a"}), choices(LAST)
    if where == "with every choice":
        first["usage"] = counted(7, 1)
    if where != "alone":
        last["usage"] = usage
        parts = [first, last]
    else:
        parts = [first, last, {"choices": [], "usage": usage}]
    whole = await behind.whole(events(*parts))
    if where == "with every choice" and not (isinstance(usage, dict) and usage):
        prompt, completion = 7, 1
    used = whole["usage"]
    assert (used["prompt_tokens"], used["completion_tokens"]) == (prompt, completion)
    assert used["total_tokens"] <= len(BODY["prompt"]) + BODY["max_tokens"]
    cached = used["prompt_tokens_details"]["cached_tokens"]
    assert 0 <= cached <= used["prompt_tokens"]


@pytest.mark.parametrize(("given", "tokens"), [(1, 2), (5, 5)])
async def test_a_count_beside_a_choice_may_be_of_that_choice_alone(
    behind: Behind, given: int, tokens: int
) -> None:
    chunks = [choices({**LAST, "index": index}, usage=counted(7, given)) for index in (0, 1)]
    whole = await behind.whole(events(*chunks), n=2)
    assert whole["usage"]["completion_tokens"] == tokens


async def test_counts_that_are_not_believed_are_logged_once(
    behind: Behind, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "afterword.upstream"):
        for _ in range(3):
            await behind.whole(events(choices(LAST, usage=counted(10**19, -5))))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert any("prompt tokens is not believed: 10000000000000000000" in text for text in said)
    assert any("completion tokens is not believed: -5" in text for text in said)


async def test_a_prompt_is_never_counted_in_characters(behind: Behind) -> None:
    """Without a count of the endpoint it is an estimate; a client that stops early pays that."""
    answer = events(choices({"index": 0, "text": "x"}), choices(LAST))
    whole = await behind.whole(answer, prompt="word " * 200)
    assert whole["usage"]["prompt_tokens"] == 250
    stopped = await behind.ask(answer, prompt="word " * 200, stop="x")
    assert stopped.json()["usage"]["prompt_tokens"] == 250


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_nobody_computed_is_not_counted_in_characters(
    behind: Behind, stream: bool
) -> None:
    """Where the endpoint fails, or nothing is asked of it, the estimate holds as well."""
    records: list[AccessRecord] = []
    client = make_client({"toy": behind.engine}, observe=lambda record, _: records.append(record))
    behind.upstream.behaviour = lambda exchange: exchange.answer(500)
    await client.post(PATH, {**BODY, "prompt": "word " * 200, "stream": stream})
    await client.post(PATH, {**BODY, "prompt": "word " * 200, "stream": stream, "max_tokens": 0})
    assert [record.prompt_tokens for record in records] == [250, 250]
    assert [record.outcome for record in records] == ["failed", "answered"]


async def test_a_broken_answer_is_no_refusal(behind: Behind) -> None:
    records: list[AccessRecord] = []
    client = make_client({"toy": behind.engine}, observe=lambda record, _: records.append(record))
    behind.upstream.behaviour = events()
    await client.post(PATH, BODY)
    (record,) = records
    assert (record.status, record.outcome) == (502, "failed")


async def test_chunks_that_are_no_tokens_are_not_cut(behind: Behind) -> None:
    """An endpoint may send single characters; its ``max_tokens`` is not a number of chunks."""
    text = "abcdefghijklmnopqrstuvwxyz"
    parts = [choices({"index": 0, "text": letter}) for letter in text]
    answer = events(*parts, choices({**LAST, "text": "!"}), choices(usage=counted(4, 5)))
    whole = await behind.whole(answer)
    assert whole["choices"][0]["text"] == text + "!"
    assert whole["usage"]["completion_tokens"] == 5
    silent = await behind.whole(events(*parts, choices({**LAST, "text": "!"})))
    assert silent["usage"]["completion_tokens"] == BODY["max_tokens"]


async def test_endless_text_ends(behind: Behind) -> None:
    parts = [choices({"index": 0, "text": "ab" * 12}) for _ in range(700)]
    (choice,) = (await behind.whole(events(*parts, done=False)))["choices"]
    assert choice["finish_reason"] == "length"
    assert len(choice["text"]) == BODY["max_tokens"] * 64 * 24


async def test_pieces_of_text_do_not_fill_the_table(
    behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text always goes on; without room for new pieces it is divided into known ones."""
    monkeypatch.setattr("afterword.gateway.vocabulary._MOST_OWN", 600)
    size = []
    for i in range(60):
        text = "".join(chr(97 + (i * 7 + j * j) % 26) for j in range(40 + i))
        whole = await behind.whole(events(choices({**LAST, "text": text})), max_tokens=200)
        assert whole["choices"][0]["text"] == text
        size.append(behind.engine.tokenizer.pieces.own)
    assert size[-1] == size[-20] <= 300


async def scores_of(behind: Behind, logprobs: dict[str, Any]) -> dict[str, Any]:
    answer = events(json.dumps(choices({**LAST, "text": "ab", "logprobs": logprobs})).encode())
    whole = await behind.whole(answer, logprobs=1)
    found: dict[str, Any] = whole["choices"][0]["logprobs"]
    return found


async def test_scores_without_a_number_are_the_lowest(behind: Behind) -> None:
    nan, inf = float("nan"), float("inf")
    found = await scores_of(
        behind,
        {"tokens": ["a", "b"], "token_logprobs": [nan, -inf],
         "top_logprobs": [{"a": -inf}, {"b": nan}], "text_offset": [0]},
    )  # fmt: skip
    assert found["token_logprobs"] == [-9999.0, -9999.0]
    assert found["top_logprobs"] == [{"a": -9999.0}, {"b": -9999.0}]


async def test_scores_in_the_shape_of_a_chat(behind: Behind) -> None:
    """So llama-server writes them on OpenAI's route."""
    e = {"token": "\u00e9", "logprob": -0.5, "bytes": [0xC3, 0xA9]}
    half = {"token": "\ufffd", "logprob": None, "bytes": [0xE2, 0x80], "top_logprobs": [e]}
    content = [{**e, "top_logprobs": [e]}, {"token": "b", "logprob": -1, "bytes": None}, half]
    answer = events(choices({**LAST, "text": "\u00e9b\ufffd", "logprobs": {"content": content}}))
    found = (await behind.ask(answer, logprobs=1)).json()["choices"][0]["logprobs"]
    assert found["tokens"] == ["\u00e9", "b", "bytes:\\xe2\\x80"]
    assert found["token_logprobs"] == [-0.5, -1.0, -9999.0]
    assert found["top_logprobs"] == [
        {"\u00e9": -0.5}, {"b": -1.0}, {"\u00e9": -0.5, "bytes:\\xe2\\x80": -9999.0},
    ]  # fmt: skip


async def test_scores_that_are_null_are_the_lowest(behind: Behind) -> None:
    """Encoders that know no infinity write null. Of nothing a model is certain."""
    found = await scores_of(
        behind,
        {"tokens": ["a", "b"], "token_logprobs": [None, -1.0],
         "top_logprobs": [{"a": None, "c": -2.0}, {"b": -1.0}], "text_offset": [0, 1]},
    )  # fmt: skip
    assert found["token_logprobs"] == [-9999.0, -1.0]
    assert found["top_logprobs"] == [{"c": -2.0, "a": -9999.0}, {"b": -1.0}]


async def test_scores_that_rounding_put_above_0_are_0(behind: Behind) -> None:
    found = await scores_of(
        behind,
        {"tokens": ["a", "b"], "token_logprobs": [1.2e-7, 0.125],
         "top_logprobs": [{"a": 1.2e-7, "c": -2.0}, {"b": 0.125}], "text_offset": [0, 1]},
    )  # fmt: skip
    assert found["token_logprobs"] == [0.0, 0.0]
    assert found["top_logprobs"] == [{"a": 0.0}, {"b": 0.0}]


LOGITS = [
    {"tokens": ["a", "b"], "token_logprobs": [-1.0, 17.5],
     "top_logprobs": [{"a": -1.0}, {"b": 17.5}]},
    {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0],
     "top_logprobs": [{"c": 0.13}, {"b": -2.0}]},
    {"content": [{"token": "a", "logprob": 3}, {"token": "b", "logprob": -2}]},
]  # fmt: skip


@pytest.mark.parametrize("logprobs", LOGITS)
async def test_scores_that_are_no_logarithms_of_probabilities_are_refused(
    behind: Behind, logprobs: dict[str, Any]
) -> None:
    """vLLM with ``--logprobs-mode raw_logits``. Other requests do not suffer from that."""
    answer = events(choices({**LAST, "text": "ab", "logprobs": logprobs}))
    for _ in range(4):
        error = await behind.refused(answer, logprobs=1)
        assert "a log-probability above 0" in error["message"]
    await behind.whole(answer)


async def test_an_error_that_takes_an_end_with_it_ends_the_request(vllm: Behind) -> None:
    """One choice ends in the event that is wrong for another one, which nobody reads any more."""
    job = Job(prompt_ids=(97,), n=2, max_tokens=9, sampling=SamplingParams(), seed=1)
    engine = vllm.engine
    reader = engine.pool.dialect.reader(0, job, (0, 1), engine.tokenizer)
    good = choices({**LAST, "token_ids": [98]})
    wrong = choices({**LAST, "token_ids": [98]}, {"index": 1, "text": "y", "token_ids": [10**6]})
    reader.close(1)
    with pytest.raises(StreamBroke):
        reader.read(json.dumps(wrong).encode())
    assert not reader.over
    reader = engine.pool.dialect.reader(0, job, (0, 1), engine.tokenizer)
    reader.close(1)
    assert len(reader.read(json.dumps(good).encode())) == 3
    with pytest.raises(StreamBroke):
        reader.read(json.dumps(wrong).encode())
    assert reader.over


@pytest.mark.parametrize("place", ["token_logprobs", "top_logprobs"])
async def test_scores_of_a_prompt_that_are_logits_are_refused(vllm: Behind, place: str) -> None:
    names = [f"token_id:{token}" for token in (97, 98, 99)]
    scores: dict[str, Any] = {
        "tokens": names, "token_logprobs": [None, -1.0, -1.0],
        "top_logprobs": [None, {names[1]: -1.0}, {names[2]: -1.0}],
    }  # fmt: skip
    body = {"prompt": [97, 98], "echo": True, "logprobs": 1, "max_tokens": 1}
    choice = {"index": 0, "token_ids": [97, 98, 99], "logprobs": scores, "finish_reason": "length"}
    reply = await vllm.ask(events(choices(choice)), **body)
    assert reply.json()["choices"][0]["logprobs"]["token_logprobs"] == [None, -1.0, -1.0]
    scores[place][1] = 12.5 if place == "token_logprobs" else {names[1]: -1.0, names[0]: 12.5}
    error = await vllm.refused(events(choices(choice)), **body)
    assert "a log-probability above 0" in error["message"]


async def test_halves_of_pairs_in_names_of_tokens(behind: Behind) -> None:
    """They stand for U+FFFD there, too."""
    tops = [{"a": -1.0, "\ud83d": -3.0}, {"b": -2.0, "\ud83d": -3.0}]
    given = {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0], "top_logprobs": tops}
    found = await scores_of(behind, given)
    assert found["tokens"] == ["a", "b"]
    assert all(set(top) <= {"a", "b", "\ufffd"} for top in found["top_logprobs"])


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"tokens": ["a"], "token_logprobs": [-1.0, -2.0], "top_logprobs": [{"a": -1.0}]},
        {"tokens": ["a", "b"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}, {}]},
        {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0], "top_logprobs": [{"a": -1.0}]},
        {"tokens": "ab", "token_logprobs": [-1.0, -2.0]},
        {"tokens": ["a", "b"], "token_logprobs": ["x", "y"]},
    ],
)
async def test_scores_of_different_lengths_are_refused(behind: Behind, logprobs: object) -> None:
    answer = events(choices({**LAST, "text": "ab", "logprobs": logprobs}))
    await behind.refused(answer, logprobs=1)


@pytest.mark.parametrize("token", [-1, 10**6, 2**31, 2**63, 2**80])
async def test_ids_outside_the_vocabulary_are_refused(vllm: Behind, token: int) -> None:
    await vllm.refused(events(choices({**LAST, "token_ids": [98, token]})), prompt=[97])
    named = {"tokens": [f"token_id:{token}"], "token_logprobs": [-1.0],
             "top_logprobs": [{f"token_id:{token}": -1.0}]}  # fmt: skip
    scored = choices({**LAST, "token_ids": [98], "logprobs": named})
    await vllm.whole(events(choices({**LAST, "token_ids": [98]})), prompt=[97])
    await vllm.refused(events(scored), prompt=[97], logprobs=1)


async def test_text_without_ids_is_delivered(vllm: Behind) -> None:
    """A vLLM of before ``return_token_ids``, or a proxy that drops the field."""
    answer = events(choices({"index": 0, "text": "bb"}), choices(LAST, usage=counted(10**19, 8)))
    whole = await vllm.whole(answer, prompt=[97])
    assert whole["choices"][0]["text"] == "bbb"
    assert whole["usage"]["prompt_tokens"] == 1


async def test_a_plain_answer_with_ids(vllm: Behind) -> None:
    answer = sized(SSE, json.dumps(choices({**LAST, "token_ids": [98, 99]})).encode())
    whole = await vllm.whole(raw(answer), prompt=[97])
    assert whole["usage"]["completion_tokens"] == 2


async def test_an_answer_that_nobody_asked_for_is_no_answer(behind: Behind) -> None:
    """A second answer in the packet of the first one, or later, is not the next request's."""
    other = sized(SSE, GOOD.replace(b'"b"', b'"x"'))
    twice = raw(sized(SSE, GOOD) + other)
    for _ in range(3):
        reply = await behind.ask(twice)
        assert reply.json()["choices"][0]["text"] == "b"
    assert len(behind.upstream.connections) == 3
    await behind.ask(events(choices(LAST)))
    idle = behind.upstream.connections[-1]
    idle.transport.write(other)
    await idle.gone.wait()
    assert (await behind.ask(events(choices(LAST)))).json()["choices"][0]["text"] == "b"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
async def test_a_kept_connection_that_closes_is_tried_once_more(
    behind: Behind, said: bytes
) -> None:
    """Only if the upstream sent nothing back on it: otherwise it may have computed already."""
    await behind.ask(events(choices(LAST)))
    used = behind.upstream.connections[0]

    def answer(exchange: Exchange) -> None:
        if exchange is used:
            exchange.transport.write(said)
            exchange.transport.close()
        else:
            events(choices(LAST))(exchange)

    reply = await behind.ask(answer)
    assert reply.status == (502 if said else 200)
    assert len(behind.upstream.bodies) == (2 if said else 3)
    assert behind.engine.pool.upstreams[0].up


async def test_a_silence_on_a_kept_connection_ends_the_request_s_time(behind: Behind) -> None:
    """It is not tried once more: that would take the client's time twice."""
    await behind.ask(events(choices(LAST)))
    behind.upstream.behaviour = raw()
    run, attempt = await behind.under_way(2)
    attempt._heard_s -= PATIENT.first_token_s
    attempt._look_back()
    reply = await run
    assert reply.status == 502
    assert "no token within" in reply.error["message"]
    assert len(behind.upstream.bodies) == 2
    assert len(behind.upstream.connections) == 1


@pytest.mark.parametrize("idle_s", [1.0, 120.0])
async def test_a_connection_that_was_idle_for_long_is_not_used_again(
    behind: Behind, idle_s: float
) -> None:
    """A firewall between may have forgotten it, and says nothing."""
    await behind.ask(events(choices(LAST)))
    client = behind.engine.pool.upstreams[0].client
    ((kept, since_s),) = client._idle
    client._idle = [(kept, since_s - idle_s)]
    await behind.ask(events(choices(LAST)))
    assert len(behind.upstream.connections) == (1 if idle_s == 1 else 2)
    assert kept.reusable == (idle_s == 1)


async def test_a_head_that_drips_has_a_timer(behind: Behind) -> None:
    """Bytes that are no token do not move the limit of the first one."""
    behind.upstream.behaviour = raw(SSE + b"x: ")
    run, attempt = await behind.under_way(1)
    begun_s = attempt._heard_s
    for _ in range(20):
        behind.upstream.connections[-1].transport.write(b"y")
        await asyncio.sleep(0)
    assert attempt._heard_s == begun_s
    attempt._heard_s -= PATIENT.first_token_s
    attempt._look_back()
    reply = await run
    assert reply.status == 502
    assert "no token within" in reply.error["message"]


async def test_what_came_while_the_process_stood_still_is_read_first(behind: Behind) -> None:
    behind.upstream.behaviour = raw()
    run, attempt = await behind.under_way(1)
    attempt._heard_s -= PATIENT.first_token_s
    attempt._look_back()
    events(choices(LAST))(behind.upstream.connections[-1])
    assert (await run).status == 200


async def test_no_compression_is_asked_for(behind: Behind) -> None:
    request = behind.engine.pool.upstreams[0].client.request("GET", "/")
    assert b"accept-encoding: identity\r\n" in request


def client_error(message: str, **more: object) -> Callable[[Exchange], None]:
    body = json.dumps({"error": {"message": message, "type": "BadRequestError", **more}}).encode()
    return lambda exchange: exchange.answer(400, body)


SECRETS = [
    "The model `prod-llama-7b-canary` does not exist.",
    "model gpt is busy",
    "no file /srv/models/x.gguf at 10.0.0.5:8000",
    "upstream http://internal.corp:8000/v1 said no to key sk-abcdef0123456789",
    "Zeus cannot do that, ask admin@corp.example",
    "password: hunter and user root",
    'Traceback (most recent call last):\n  File "/opt/vllm/x.py", line 4',
]


@pytest.mark.parametrize("message", SECRETS)
async def test_the_text_of_an_upstream_shows_nothing_internal(behind: Behind, message: str) -> None:
    reply = await behind.ask(client_error(message, param="x_internal", code="corp_code_7"))
    assert reply.status == 400
    shown = json.dumps(reply.error)
    for secret in ("llama", "canary", "gpt", "srv", "10.0.0.5", "corp", "sk-", "Zeus", "hunter",
                   "root", "opt", "internal"):  # fmt: skip
        assert secret not in shown
    assert reply.error["param"] is None
    assert reply.error["code"] is None
    assert behind.engine.pool.upstreams[0].up


@pytest.mark.parametrize("answer", [
    b'{"error": "n must be at most 5"}', b'{"message": "n must be at most 5"}',
    b'{"detail": "n must be at most 5"}', b'{"error": {"message": "n must be at most 5"}}',
])  # fmt: skip
async def test_plain_words_of_an_upstream_are_shown(behind: Behind, answer: bytes) -> None:
    reply = await behind.ask(lambda exchange: exchange.answer(422, answer))
    assert reply.status == 400
    assert reply.error["message"] == "n must be at most 5"


@pytest.mark.parametrize("answer", [b"", b"<html>", b"[" * 100_000, b'{"error": 5}', b"null"])
async def test_a_refusal_that_cannot_be_read(behind: Behind, answer: bytes) -> None:
    reply = await behind.ask(lambda exchange: exchange.answer(400, answer))
    assert reply.status == 400
    assert reply.error["message"] == "The server of this model refused the request."


@pytest.mark.parametrize(
    "answer",
    [b"", b"{}", b"<html>", b'{"tokens": "a"}', b'{"tokens": [-1]}', b'{"tokens": [99999999999]}',
     b'{"tokens": [1.5]}', b'data: {"tokens": [97]}\n\n', b"[" * 100_000],
)  # fmt: skip
async def test_odd_answers_of_the_tokenizer(vllm: Behind, answer: bytes) -> None:
    vllm.upstream.tokenized = answer
    await vllm.refused(events(choices(LAST)), prompt="a")
    vllm.upstream.tokenized = None
    good = events(choices({**LAST, "token_ids": [98], "finish_reason": "length"}))
    assert (await vllm.whole(good, prompt="a"))["choices"][0]["text"] == "b"


@pytest.mark.parametrize(
    "answer",
    [b'\xef\xbb\xbf{"tokens": [97]}', b'{"tokens": [97.0], "count": 1.0}',
     b'{"tokens": [97], "x": NaN}', b'{"tokens": [97], "x": "\xff"}'],
)  # fmt: skip
async def test_odd_answers_of_the_tokenizer_that_can_be_read(vllm: Behind, answer: bytes) -> None:
    vllm.upstream.tokenized = answer
    good = events(choices({**LAST, "token_ids": [98], "finish_reason": "length"}))
    assert (await vllm.whole(good, prompt="a"))["choices"][0]["text"] == "b"


@pytest.mark.parametrize("reason", ["content_filter", "unheard-of", 7])
async def test_only_a_stop_has_an_end_token(vllm: Behind, reason: object) -> None:
    """vLLM's last id of a ``stop`` is an end token without text; that of another end is text."""
    answer = events(choices({**LAST, "token_ids": [98], "finish_reason": reason}))
    (choice,) = (await vllm.whole(answer, prompt=[97]))["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("b", "stop")
