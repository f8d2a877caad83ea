"""Odd answers: what can be read is delivered, the rest is refused, and no address is taken out."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from afterword.core.limits import Limits
from afterword.gateway.dialects.dialect import UNKNOWN_CONTEXT, Facts
from afterword.gateway.engine import RemoteEngine
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


async def test_a_head_that_drips_has_a_timer(behind: Behind) -> None:
    """Bytes that are no token do not move the limit of the first one."""
    behind.upstream.behaviour = raw(SSE + b"x: ")
    run = asyncio.ensure_future(behind.client.post(PATH, BODY))
    await behind.upstream.until_asked(1)
    (generation,) = behind.engine._generations
    (attempt,) = set(generation._attempts.values())
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
    run = asyncio.ensure_future(behind.client.post(PATH, BODY))
    await behind.upstream.until_asked(1)
    (generation,) = behind.engine._generations
    (attempt,) = set(generation._attempts.values())
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
