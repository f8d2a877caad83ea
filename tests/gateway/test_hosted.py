"""Hosted endpoints: text in, text out; only log-probabilities name tokens."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from afterword.core.limits import Limits
from afterword.gateway.address import parse_addresses
from afterword.gateway.dialects.dialect import UNKNOWN_CONTEXT, Facts
from afterword.gateway.engine import RemoteEngine, open_remote
from afterword.gateway.pool.pool import PoolOptions
from afterword.gateway.transport.client import HttpClient
from conftest import make_client
from standins.server import Exchange, StandIn
from standins.upstreams import engine_of
from support.asgi import Client, chunks_of, fold

FACTS = Facts(model="gpt", context_tokens=UNKNOWN_CONTEXT, max_logprobs=5, identity="x")
Open = Callable[[StandIn], Client]


@pytest.fixture
async def hosted() -> AsyncIterator[Open]:
    engines: list[RemoteEngine] = []

    def make(upstream: StandIn) -> Client:
        engines.append(engine_of(upstream.address.replace("vllm+", "openai+"), [FACTS]))
        return make_client({"toy": engines[-1]}, limits=Limits(max_logprobs=10))

    yield make
    for engine in engines:
        await engine.aclose()


def chunk(exchange: Exchange, **more: Any) -> None:
    exchange.part(b"data: %b\n\n" % json.dumps(more).encode())


def say(exchange: Exchange, text: str, finish: str | None = None, index: int = 0) -> None:
    chunk(exchange, choices=[{"index": index, "text": text, "logprobs": None,
                              "finish_reason": finish}])  # fmt: skip


def done(exchange: Exchange) -> None:
    """``[DONE]`` and the end of the answer."""
    exchange.part(b"data: [DONE]\n\n")
    exchange.transport.write(b"0\r\n\r\n")


def hello(exchange: Exchange) -> None:
    """Three tokens in two chunks."""
    exchange.begin()
    say(exchange, "Hel")
    say(exchange, "lo 🙂", "stop")
    chunk(exchange, choices=[], usage={"prompt_tokens": 7, "completion_tokens": 3,
                                       "prompt_tokens_details": {"cached_tokens": 4}})  # fmt: skip
    done(exchange)


@pytest.mark.parametrize(
    "listed",
    [
        b'{"object": "list", "data": [{"id": "gpt", "created": 1.5, "owned_by": null}]}',
        b'[{"id": "gpt", "object": "model"}]',
        b'\xef\xbb\xbf{"data": [{"id": "gpt", "max_model_len": 4096.0, "root": null}]}',
    ],
)
async def test_the_list_of_models_in_every_shape(listed: bytes) -> None:
    async with StandIn() as upstream:
        upstream.listed = listed
        source = upstream.address.replace("vllm+", "openai+")
        engine = await open_remote("gpt", parse_addresses(source), options=PoolOptions())
        assert engine.card.details["upstream_model"] == "gpt"
        await engine.aclose()


async def test_a_thread_writes_long_prompts(hosted: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte of prompt would hold the event loop for a tenth of a second."""
    threads: list[int] = []
    written = HttpClient.request

    def request(client: HttpClient, *given: Any) -> bytes:
        threads.append(threading.get_ident())
        return written(client, *given)

    monkeypatch.setattr(HttpClient, "request", request)
    prompts = ["\u20ac" * 100_000, "", "short"]
    async with StandIn(hello) as upstream:
        client = hosted(upstream)
        for prompt in prompts:
            await client.complete(prompt=prompt, max_tokens=3)
    assert [body.get("prompt", "") for body in upstream.bodies] == prompts
    here = threading.get_ident()
    assert [thread == here for thread in threads] == [False, True, True]


async def test_an_upstream_that_drains_gets_what_is_being_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, begun, drained = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    written = HttpClient.request

    def request(client: HttpClient, *given: Any) -> bytes:
        loop.call_soon_threadsafe(begun.set)
        drained.wait()
        return written(client, *given)

    monkeypatch.setattr(HttpClient, "request", request)
    async with StandIn(hello) as upstream:
        engine = engine_of(upstream.address.replace("vllm+", "openai+"), [FACTS])
        client = make_client({"toy": engine})
        answer = asyncio.ensure_future(client.complete(prompt="a" * 300_000, max_tokens=3))
        await begun.wait()
        (behind,) = engine.pool.upstreams
        behind.draining = True
        engine.pool.drop_drained()
        left = list(engine.pool.upstreams)
        drained.set()
        assert (await answer)["choices"][0]["text"] == "Hello 🙂"
        assert left == [behind]
        await engine.aclose()


@pytest.mark.parametrize("seed", [None, 0, -1, 2**31, 2**63 - 1, -(2**63)])
async def test_R15_a_seed_goes_through_and_nobody_makes_one_up(
    hosted: Open, seed: int | None
) -> None:
    """Some endpoints have no seeds, and refuse every request with one."""
    async with StandIn(hello) as upstream:
        await hosted(upstream).complete(prompt="a", max_tokens=3, seed=seed)
    (asked,) = upstream.bodies
    assert asked.get("seed") == seed
    assert ("seed" in asked) == (seed is not None)


async def test_text_goes_through_and_usage_is_theirs(hosted: Open) -> None:
    async with StandIn(hello) as upstream:
        client = hosted(upstream)
        body = {"prompt": "Say é", "max_tokens": 9, "echo": True, "seed": 5}
        answer = await client.complete(**body)
        assert answer["choices"][0]["text"] == "Say éHello 🙂"
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"] == {
            "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 4},
        }  # fmt: skip
        options = {"stream_options": {"include_usage": True}}
        folded = fold(await client.stream(**body, **options), usage=True)
        assert folded["choices"] == answer["choices"]
        assert folded["usage"] == answer["usage"]
        asked = upstream.bodies[0]
        assert asked["prompt"] == "Say é"
        assert asked["seed"] == 5
        assert "echo" not in asked


async def test_stops_are_ours(hosted: Open) -> None:
    async with StandIn(hello) as upstream:
        answer = await hosted(upstream).complete(prompt="a", max_tokens=9, stop="lo")
        assert answer["choices"][0]["text"] == "Hel"
        assert "stop" not in upstream.bodies[0]


async def test_a_stop_string_ends_one_choice_alone(hosted: Open) -> None:
    """The upstream goes on with the other one."""
    asked: asyncio.Queue[Exchange] = asyncio.Queue()
    async with StandIn(asked.put_nowait) as upstream:
        given = {"model": "toy", "prompt": "a", "max_tokens": 9, "n": 2, "stop": "lo"}
        client, run = hosted(upstream).begin({**given, "stream": True})
        exchange = await asked.get()
        exchange.begin()
        say(exchange, "wor", None, 1)
        say(exchange, "Hello", None, 0)
        while not any(b'"finish_reason":"stop"' in part.get("body", b"") for part in client.sent):
            client.news.clear()
            await client.news.wait()
        say(exchange, "ld", "length", 1)
        done(exchange)
        await run
        choices = fold(chunks_of(client.reply.body), usage=False)["choices"]
        assert [choice["text"] for choice in choices] == ["Hel", "world"]
        assert [choice["finish_reason"] for choice in choices] == ["stop", "length"]


async def test_several_choices_are_counted_together(hosted: Open) -> None:
    def two(exchange: Exchange) -> None:
        exchange.begin()
        say(exchange, "a", "stop", 1)
        say(exchange, "b", "length", 0)
        chunk(exchange, choices=[], usage={"prompt_tokens": 1, "completion_tokens": 9})
        done(exchange)

    async with StandIn(two) as upstream:
        answer = await hosted(upstream).complete(prompt="a", max_tokens=9, n=2)
        assert [c["text"] for c in answer["choices"]] == ["b", "a"]
        assert [c["finish_reason"] for c in answer["choices"]] == ["length", "stop"]
        assert answer["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize(
    ("alone", "whole", "counted"),
    [(None, 1, 2), (1, None, 4), (1, 6, 6), (9, 6, 6)],
    ids=["too few in all", "of one choice alone", "in all at the end", "the end is believed"],
)
async def test_several_choices_whose_counts_differ(
    hosted: Open, alone: int | None, whole: int | None, counted: int
) -> None:
    """A count in a chunk with a choice may be of that choice. No count is below zero."""

    def three(exchange: Exchange) -> None:
        exchange.begin()
        for index in range(3):
            say(exchange, "a", None, index)
        say(exchange, "b", "stop", 0)
        say(exchange, "", "stop", 1)
        last = {"index": 2, "text": "", "finish_reason": "stop"}
        used = {} if alone is None else {"usage": {"prompt_tokens": 1, "completion_tokens": alone}}
        chunk(exchange, choices=[last], **used)
        if whole is not None:
            chunk(exchange, choices=[], usage={"prompt_tokens": 1, "completion_tokens": whole})
            # Another count of a choice changes nothing.
            chunk(exchange, choices=[last], **used)
        done(exchange)

    async with StandIn(three) as upstream:
        answer = await hosted(upstream).complete(prompt="a", max_tokens=9, n=3)
        assert [c["text"] for c in answer["choices"]] == ["ab", "a", "a"]
        assert answer["usage"]["completion_tokens"] == counted


@pytest.mark.parametrize("tops", [None, []])
async def test_logprobs_without_alternatives(hosted: Open, tops: list[Any] | None) -> None:
    """``logprobs: 0`` asks for none, and a server may leave the array out."""

    def scored(exchange: Exchange) -> None:
        exchange.begin()
        logprobs = {"tokens": ["a", "b"], "token_logprobs": [-0.5, None], "top_logprobs": tops}
        last = {"index": 0, "text": "ab", "logprobs": logprobs, "finish_reason": "length"}
        chunk(exchange, choices=[last])
        done(exchange)

    async with StandIn(scored) as upstream:
        answer = await hosted(upstream).complete(prompt="x", max_tokens=2, logprobs=0)
        assert answer["choices"][0]["logprobs"] == {
            "tokens": ["a", "b"], "token_logprobs": [-0.5, -9999.0], "text_offset": [1, 2],
            "top_logprobs": [{"a": -0.5}, {"b": -9999.0}],
        }  # fmt: skip


async def test_logprobs_name_the_tokens(hosted: Open) -> None:
    def scored(exchange: Exchange) -> None:
        exchange.begin()
        logprobs = {
            "tokens": ["bytes:\\xf0\\x9f", "bytes:\\x99\\x82", "!"],
            "token_logprobs": [-0.5, -0.25, -1.5],
            "top_logprobs": [{"bytes:\\xf0\\x9f": -0.5, "x": -1.0}, {"bytes:\\x99\\x82": -0.25},
                             {"?": -0.5, "a": -2.0, "!": -1.5}],
            "text_offset": [0, 0, 1],
        }  # fmt: skip
        chunk(exchange, choices=[{"index": 0, "text": "🙂!", "logprobs": logprobs,
                                  "finish_reason": "length"}])  # fmt: skip
        done(exchange)

    async with StandIn(scored) as upstream:
        answer = await hosted(upstream).complete(prompt="ab", max_tokens=3, logprobs=2)
        (choice,) = answer["choices"]
        assert choice["text"] == "🙂!"
        assert choice["logprobs"]["tokens"] == ["bytes:\\xf0\\x9f", "bytes:\\x99\\x82", "!"]
        assert choice["logprobs"]["text_offset"] == [2, 2, 3]
        assert choice["logprobs"]["top_logprobs"][1] == {"bytes:\\x99\\x82": -0.25}
        assert choice["logprobs"]["top_logprobs"][2] == {"?": -0.5, "!": -1.5}
        assert answer["usage"]["completion_tokens"] == 3


async def test_the_start_of_a_document_is_theirs(hosted: Open) -> None:
    async with StandIn(hello) as upstream:
        await hosted(upstream).complete(max_tokens=9)
        assert "prompt" not in upstream.bodies[0]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"suffix": "b"}, "suffix"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 6}, "logprobs"),
        ({"top_k": 3}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"min_tokens": 1}, "min_tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"max_tokens": None}, "max_tokens"),
    ],
)
async def test_what_it_cannot_give_is_refused_by_name(
    hosted: Open, body: dict[str, Any], param: str
) -> None:
    async with StandIn(hello) as upstream:
        error = await hosted(upstream).refuse(**{"prompt": "a", "max_tokens": 3, **body})
        assert error["param"] == param
        assert "an OpenAI-like endpoint" in error["message"]
        assert "127.0.0.1" not in error["message"]
        assert not upstream.bodies


async def test_tokenizing_is_refused(hosted: Open) -> None:
    async with StandIn(hello) as upstream:
        client = hosted(upstream)
        for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
            reply = await client.post(path, body)
            assert reply.status == 400
            assert "has no tokenizer" in reply.error["message"]
        assert (await client.get("/tokenizer_info")).status == 400


async def test_a_salt_is_refused(hosted: Open) -> None:
    """The endpoint cannot keep prefixes apart."""
    async with StandIn(hello) as upstream:
        client = hosted(upstream)
        error = await client.refuse(prompt="Say", max_tokens=5, cache_salt="mine")
        assert error["param"] == "cache_salt"
        assert "has no such parameter" in error["message"]
        answer = await client.complete(prompt="Say", max_tokens=5)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
