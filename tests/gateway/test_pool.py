"""The pool chooses upstreams by health, load and shared prefixes, and drains them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.core.errors import ConfigError
from afterword.gateway.address import parse_addresses
from afterword.gateway.dialects.dialect import Facts
from afterword.gateway.failures import ConnectFailed, Silent
from afterword.gateway.pool.pool import Pool
from afterword.gateway.pool.prefixes import BLOCK_TOKENS, PrefixMap, block_keys
from afterword.gateway.pool.upstream import Upstream
from conftest import make_client
from standins.server import FACTS, Exchange, StandIn
from standins.upstreams import Front, hasty

BODY = {"model": "toy", "prompt": [97], "max_tokens": 3}
IDS = st.lists(st.integers(0, 2), max_size=5 * BLOCK_TOKENS)


class Held:
    """A behaviour that answers when ``let`` is set."""

    def __init__(self) -> None:
        self.let = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        exchange.begin()
        await self.let.wait()
        exchange.tokens([98, 98, 98], "length")
        exchange.end()


async def test_the_one_with_least_to_do_is_next(front: Front) -> None:
    held = Held()
    async with StandIn(held) as one, StandIn(held) as two, StandIn(held) as three:
        engine = front(one, two, three)
        client = make_client({"toy": engine})
        begun = []
        for count in range(1, 7):
            begun.append(client.begin(BODY))
            while sum(len(u.bodies) for u in (one, two, three)) < count:
                await asyncio.sleep(0)
        assert [len(u.bodies) for u in (one, two, three)] == [2, 2, 2]
        held.let.set()
        for exchange, run in begun:
            await run
            assert exchange.reply.status == 200
        assert [u.outstanding_tokens for u in engine.pool.upstreams] == [0, 0, 0]
        assert [u.running for u in engine.pool.upstreams] == [0, 0, 0]


async def test_requests_of_many_siblings_begin_one_by_one(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in a turn of the loop, because a long prompt takes a while to write."""
    turn, begun = 0, []

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async with StandIn() as one:
        engine = front(one)
        write = engine.pool.dialect.request

        def request(*given: Any) -> tuple[str, object]:
            begun.append(turn)
            return write(*given)

        monkeypatch.setattr(engine.pool.dialect, "request", request)
        counting = asyncio.create_task(count())
        # vLLM refuses several greedy siblings together, so each has a request of its own.
        await make_client({"toy": engine}).complete(prompt=[97], n=8, max_tokens=3, temperature=0)
        counting.cancel()
    assert len(set(begun)) == len(begun) == 8


async def test_a_computed_prompt_is_no_longer_to_do(front: Front) -> None:
    """After the first token only the tokens to come count as work."""
    rest = asyncio.Event()

    async def behaviour(exchange: Exchange) -> None:
        exchange.begin()
        exchange.tokens([98])
        await rest.wait()
        exchange.tokens([98, 98], "length")
        exchange.end()

    async with StandIn(behaviour) as one:
        engine = front(one)
        (upstream,) = engine.pool.upstreams
        exchange, run = make_client({"toy": engine}).begin(
            {**BODY, "prompt": [97] * 50, "stream": True}
        )
        while upstream.outstanding_tokens != BODY["max_tokens"]:
            await asyncio.sleep(0)
        assert upstream.running == 1
        rest.set()
        await run
        assert exchange.reply.status == 200
        assert upstream.outstanding_tokens == 0


async def test_prompts_with_a_common_prefix_go_to_one_upstream(front: Front) -> None:
    async with StandIn() as one, StandIn() as two:
        client = make_client({"toy": front(one, two)})
        documents = [[10 + i] * 3 * BLOCK_TOKENS for i in range(2)]
        for turn in range(4):
            for document in documents:
                await client.complete(prompt=[*document, turn], max_tokens=3)
        for upstream in (one, two):
            first = {body["prompt"][0] for body in upstream.bodies}
            assert len(first) == 1
            assert len(upstream.bodies) == 4


@given(st.lists(st.tuples(IDS, st.integers(0, 2)), max_size=8), IDS)
def test_shared_prefixes_are_those_of_a_naive_search(
    sent: list[tuple[list[int], int]], prompt: list[int]
) -> None:
    prefixes = PrefixMap()
    for ids, upstream in sent:
        prefixes.remember(block_keys(ids), 1 << upstream)
    for upstream in range(3):
        longest = 0
        for ids, to in sent:
            common = 0
            while common < min(len(ids), len(prompt)) and ids[common] == prompt[common]:
                common += 1
            if to == upstream:
                longest = max(longest, common // BLOCK_TOKENS * BLOCK_TOKENS)
        assert prefixes.shared_tokens(block_keys(prompt), 1 << upstream) == longest


def test_the_map_is_bounded_and_forgets_ends_first() -> None:
    prefixes = PrefixMap(most_blocks=4)
    old, new = [1] * 3 * BLOCK_TOKENS, [2] * 3 * BLOCK_TOKENS
    prefixes.remember(block_keys(old), 1)
    prefixes.remember(block_keys(new), 1)
    assert prefixes.shared_tokens(block_keys(new), 1) == 3 * BLOCK_TOKENS
    assert prefixes.shared_tokens(block_keys(old), 1) == BLOCK_TOKENS
    prefixes.forget(1)
    assert prefixes.shared_tokens(block_keys(new), 1) == 0


def test_keys_of_a_long_prompt_are_bounded() -> None:
    """Others keep their places in the map, and the event loop its time."""
    ids = list(range(1 << 18))
    assert len(block_keys(ids)) == 1 << 12
    assert block_keys(ids) == block_keys(ids[: 1 << 17])


async def test_one_that_failed_is_the_second_choice_among_equals(front: Front) -> None:
    async with StandIn(lambda exchange: exchange.transport.abort()) as bad, StandIn() as good:
        engine = front(bad, good)
        client = make_client({"toy": engine})
        for _ in range(3):
            await client.complete(prompt=[97], max_tokens=3)
        assert (len(bad.bodies), len(good.bodies)) == (1, 3)
        assert engine.pool.upstreams[0].up


async def test_one_that_went_down_gets_nothing_until_a_probe_finds_it_up(front: Front) -> None:
    async with StandIn() as one, StandIn() as good:
        engine = front(one, good)
        client = make_client({"toy": engine})
        upstream = engine.pool.upstreams[0]
        engine.pool.failed(upstream, ConnectFailed("refused"))
        assert not upstream.up
        assert engine.healthy()
        for _ in range(3):
            await client.complete(prompt=[97], max_tokens=3)
        assert (len(one.bodies), len(good.bodies)) == (0, 3)
        await engine.pool.probe(upstream)
        assert upstream.up
        for _ in range(4):
            await client.complete(prompt=[97], max_tokens=3)
        assert len(one.bodies) > 0


async def test_silence_of_the_health_path_takes_an_upstream_out(front: Front) -> None:
    """A request that hears nothing may be the request's own fault; a probe is not."""
    async with StandIn(silent=True) as one:
        engine = front(one)
        (upstream,) = engine.pool.upstreams
        engine.pool.failed(upstream, Silent("no token within 300 s"))
        assert upstream.up
        upstream.api._timeout_s = 0.001
        await engine.pool.probe(upstream)
        assert not upstream.up


async def test_probes_run_by_themselves(front: Front) -> None:
    async with StandIn() as one:
        engine = front(one, options=hasty(probe_s=0.005))
        await make_client({"toy": engine}).complete(prompt=[97], max_tokens=3)
        one.healthy = False
        while engine.healthy():
            await asyncio.sleep(0)
        one.healthy = True
        while not engine.healthy():
            await asyncio.sleep(0)


async def test_a_silent_server_holds_up_no_probe_of_another(front: Front) -> None:
    """Each is asked once at a time."""
    async with StandIn(silent=True) as silent, StandIn() as other:
        engine = front(silent, other, options=hasty(probe_s=0.005, connect_s=3600))
        pool = engine.pool
        pool.watch()
        for upstream in pool.upstreams:
            upstream.went_down("toy", "a test")
        while not engine.healthy():
            await asyncio.sleep(0)
        while len(other.paths) < 3:
            await asyncio.sleep(0)
        assert len(silent.paths) == 1


async def test_probes_go_on_whatever_they_find(
    front: Front, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that came up without its model, or with a fault of ours, is asked again."""
    async with StandIn() as one:
        engine = front(one, options=hasty(probe_s=0.005))
        pool = engine.pool
        (upstream,) = pool.upstreams
        faults: list[Exception] = [
            ConfigError("it serves nothing"), KeyError("secret"), ConfigError("it serves nothing"),
        ]  # fmt: skip

        async def introspect(*_: object) -> Facts:
            if faults:
                raise faults.pop()
            return FACTS

        monkeypatch.setattr(pool.dialect, "introspect", introspect)
        upstream.facts, upstream.up = None, False
        pool.watch()
        while not engine.healthy():
            await asyncio.sleep(0)
    assert caplog.text.count("it serves nothing") == 2
    assert "KeyError" in caplog.text
    assert "secret" not in caplog.text


async def test_errors_in_a_row_take_an_upstream_out(front: Front) -> None:
    """One error may be the request's fault; the third in a row is not."""
    async with StandIn(lambda exchange: exchange.answer(500)) as bad:
        engine = front(bad)
        client = make_client({"toy": engine})
        for up in (True, True, False):
            assert (await client.post("/v1/completions", BODY)).status >= 500
            if not up:
                # Its health path answers 200, so the next probe finds it up.
                await engine.pool.probe(engine.pool.upstreams[0])
            assert engine.healthy()


async def test_draining_loses_no_request(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    held = Held()
    async with StandIn(held) as one, StandIn() as two:
        engine = front(one)
        client = make_client({"toy": engine})
        exchange, run = client.begin({**BODY, "stream": True})
        await one.until_asked(1)
        with caplog.at_level(logging.INFO, "afterword.upstream"):
            # The second upstream is known already and needs no introspection.
            engine.pool.upstreams += front(two).pool.upstreams
            (await engine.prepare(parse_addresses(two.address)))()
            for _ in range(3):
                await client.complete(prompt=[97], max_tokens=3)
            assert (len(one.bodies), len(two.bodies)) == (1, 3)
            assert len(engine.pool.upstreams) == 2
            held.let.set()
            await run
        assert b"[DONE]" in exchange.reply.body
        assert [u.address.port for u in engine.pool.upstreams] == [two.port]
        assert "drains" in caplog.text
        assert "is drained" in caplog.text


@asynccontextmanager
async def draining(
    front: Front,
) -> AsyncIterator[tuple[Pool, StandIn, StandIn, Callable[[], Awaitable[None]]]]:
    """Yields a pool, the upstream that drains, the other, and what ends the request it is at."""
    held = Held()
    async with StandIn(held) as one, StandIn() as two:
        engine = front(one, two)
        _, run = make_client({"toy": engine}).begin(BODY)
        await one.until_asked(1)
        (await engine.prepare(parse_addresses(two.address)))()

        async def end() -> None:
            held.let.set()
            await run

        yield engine.pool, one, two, end


async def test_an_address_that_comes_back_is_used_again(front: Front) -> None:
    async with draining(front) as (pool, one, two, end):
        assert pool.upstreams[0].draining
        (await pool.prepare(parse_addresses(f"{one.address} {two.address}")))()
        assert not pool.upstreams[0].draining
        await end()


async def test_one_that_drains_and_comes_back_may_be_gone_meanwhile(front: Front) -> None:
    async with draining(front) as (pool, one, two, end):
        both = await pool.prepare(parse_addresses(f"{one.address} {two.address}"))
        await end()
        assert [upstream.address.port for upstream in pool.upstreams] == [two.port]
        both()
        assert {upstream.address.port for upstream in pool.upstreams} == {one.port, two.port}


async def test_an_address_of_another_model_changes_nothing(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The servers that are there go on with their requests."""

    async def introspect(_: Upstream) -> None:
        raise ConfigError("it does not serve 'toy'")

    async with StandIn() as one, StandIn() as two:
        engine = front(one)
        monkeypatch.setattr(engine.pool, "_introspect", introspect)
        with pytest.raises(ConfigError, match="does not serve"):
            await engine.prepare(parse_addresses(two.address))
        assert not engine.pool.upstreams[0].draining
        await make_client({"toy": engine}).complete(prompt=[97], max_tokens=3)


async def test_another_dialect_is_another_engine(front: Front) -> None:
    async with StandIn() as one:
        with pytest.raises(ConfigError, match="another start"):
            await front(one).prepare(parse_addresses("openai+http://127.0.0.1:9/v1"))


async def test_figures_of_each_upstream(front: Front) -> None:
    """Metrics of requests, failures and running requests by upstream, without credentials."""
    held = Held()
    async with StandIn(lambda exchange: exchange.transport.abort()) as bad, StandIn() as good:
        engine = front(f"{bad.address}#toy", good)
        client = make_client({"toy": engine})
        for _ in range(3):
            await client.complete(prompt=[97], max_tokens=3)
        good.behaviour = held
        _, run = client.begin(BODY)
        await good.until_asked(4)
        figures = (await client.get("/metrics")).body.decode()
        held.let.set()
        await run
        where = {u: f'{{model="toy",upstream="http://127.0.0.1:{u.port}/v1' for u in (bad, good)}
        lines = [line for line in figures.splitlines() if line.startswith("afterword_upstream")]
        assert lines == [
            f'afterword_upstream_requests_total{where[bad]}#toy"}} 1.0',
            f'afterword_upstream_requests_total{where[good]}"}} 4.0',
            f'afterword_upstream_failures_total{where[bad]}#toy"}} 1.0',
            f'afterword_upstream_failures_total{where[good]}"}} 0.0',
            f'afterword_upstream_in_flight{where[bad]}#toy"}} 0.0',
            f'afterword_upstream_in_flight{where[good]}"}} 1.0',
            f'afterword_upstream_healthy{where[bad]}#toy"}} 1.0',
            f'afterword_upstream_healthy{where[good]}"}} 1.0',
        ]
