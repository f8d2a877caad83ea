"""The ledger as clients see it: keys, limits, and a record of every admitted request."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from afterword.completion import tokens
from afterword.core.account import Ask, KeyTerms, Principal, UsageRecord
from afterword.core.machine import sync_file
from afterword.engine.batching.runner import Batch, DecodeError
from afterword.engine.toy import toy_engine
from afterword.ledger import journal, keys
from afterword.ledger.audit import check
from afterword.ledger.database import connect, prepare, sqlite_url
from afterword.ledger.tables import reservations
from ledger.team import Team, team
from support.asgi import Client, Reply

PATH = "/v1/completions"
BODY: dict[str, Any] = {"model": "toy", "prompt": "a", "ignore_eos": True}


@pytest.fixture
async def running(engine: sa.Engine, tmp_path: Path) -> AsyncIterator[Team]:
    async with team(engine, tmp_path / "data") as opened:
        yield opened


@pytest.fixture
def lite(tmp_path: Path) -> Callable[..., Any]:
    """Makes servers on SQLite, for behaviour that does not depend on the database."""
    database = connect(sqlite_url(tmp_path / "ledger.db"))
    prepare(database)
    return lambda **options: team(database, tmp_path / "data", **options)


def waiting_for(hold: threading.Event) -> Callable[[Batch], None]:
    def wait(_: Batch) -> None:
        hold.wait()

    return wait


def nothing_is_held(running: Team) -> None:
    """No reservation is left, and every sum is right."""
    running.refresh()
    assert running.ledger.access.figures().unsettled == 0
    with running.database.connect() as connection:
        assert connection.execute(sa.select(reservations)).all() == []
    assert check(running.database) == []


def agrees(record: UsageRecord, answer: dict[str, Any]) -> None:
    usage = answer["usage"]
    assert record.id == answer["id"]
    assert record.prompt_tokens == usage["prompt_tokens"]
    assert record.completion_tokens == usage["completion_tokens"]
    assert record.cached_tokens == usage["prompt_tokens_details"]["cached_tokens"]


# Authentication.


async def test_without_keys_programs_of_this_machine_get_in(lite: Callable[..., Any]) -> None:
    async with lite(guarded=True) as running:
        here = [{"host": h} for h in ("localhost:8000", "127.0.0.1", "[::1]:80", "x.localhost")]
        same = {"host": "localhost:8000", "origin": "http://localhost:8000"}
        for headers in (*here, same, {**here[0], "authorization": "Bearer unused"}):
            assert (await running.client.request("GET", "/v1/models", b"", headers)).status == 200
        for headers in (
            {"host": "evil.example"},
            {"host": "localhost:8000", "origin": "https://evil.example"},
            {"host": "localhost:8000", "origin": "null"},
            {"host": "[::1"},
            {"host": ""},
        ):
            reply = await running.client.request("GET", "/v1/models", b"", headers)
            assert reply.status == 401
            assert "pages of other sites" in reply.error["message"]


async def test_with_a_key_every_route_but_health_needs_one(lite: Callable[..., Any]) -> None:
    async with lite() as running:
        known = running.key()
        for method, path in (
            ("POST", PATH), ("POST", "/v1/engines/toy/completions"), ("GET", "/v1/models"),
            ("POST", "/openai/deployments/toy/completions"), ("GET", "//v1/models"),
            ("GET", "/v1/models/toy"), ("POST", "/tokenize"), ("POST", "/detokenize"),
            ("GET", "/tokenizer_info"), ("GET", "/metrics"), ("GET", "/openapi.json"),
            ("GET", "/docs"), ("GET", "/nowhere"), ("GET", "/admin/v1/keys"), ("HEAD", "/metrics"),
        ):  # fmt: skip
            assert (await running.client.request(method, path)).status == 401, path
            assert (await known.request(method, path)).status != 401
        for path in ("/health", "/ready", "/"):
            assert (await running.client.get(path)).status == 200
        assert (await running.client.get("/playground/none.js")).status == 404


async def test_the_reference_asks_a_browser_for_the_key(lite: Callable[..., Any]) -> None:
    """It says nothing that needs a key. Programs, and browsers that sent a key, are refused."""
    browser = {"accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}
    async with lite() as running:
        known, client = running.key(), running.client
        for path in ("/docs", "/docs/"):
            reply = await client.request("GET", path, b"", browser)
            assert (reply.status, reply.headers["content-type"]) == (
                200,
                "text/html; charset=utf-8",
            )
            assert reply.body == (await client.get("/playground/docs.html")).body
            assert "default-src 'none'" in reply.headers["content-security-policy"]
            assert b"toy" not in reply.body
            assert b"max_tokens" not in reply.body
        assert b"max_tokens" in (await known.request("GET", "/docs", b"", browser)).body
        wrong = {**browser, "authorization": "Bearer sk-wrong"}
        for path, headers in (
            ("/docs", {}), ("/docs", {"accept": "application/json"}), ("/docs", wrong),
            ("/openapi.json", browser), ("/metrics", browser), ("/docs/x", browser),
        ):  # fmt: skip
            reply = await client.request("GET", path, b"", headers)
            assert (reply.status, reply.error["code"]) == (401, "invalid_api_key"), path
        assert (await client.request("POST", "/docs", b"", browser)).status == 401


async def test_health_names_models_only_to_who_may_use_them(lite: Callable[..., Any]) -> None:
    """Everybody sees the status and the probe's outcome. A wrong key waits as elsewhere."""
    async with lite(guarded=True) as running:

        async def names(client: Client, host: str = "localhost") -> list[str | None]:
            reply = await client.request("GET", "/health", b"", {"host": host})
            health = reply.json()
            assert (reply.status, health["status"]) == (200, "ok")
            for engine in health["engines"]:
                assert engine["healthy"]
                assert engine["batch_invariant"] is True
                assert ("fingerprint" in engine) == ("model" in engine)
            first = health["engines"][0]
            for fact in ("model", "fingerprint"):
                assert health.get(fact) == first.get(fact)
            return [engine.get("model") for engine in health["engines"]]

        assert await names(running.client) == ["toy", "other"]
        # A page of another site, in a browser on the server's machine.
        assert await names(running.client, "evil.example") == [None, None]
        whole, one = running.key("whole"), running.key("one", models=("other",))
        assert await names(running.client) == [None, None]
        assert await names(whole, "example.com") == ["toy", "other"]
        assert await names(one) == [None, "other"]
        assert running.slept == []
        assert await names(running.client.with_key("sk-wrong")) == [None, None]
        assert running.slept == [0.5]


async def test_no_auth_lets_everybody_in(lite: Callable[..., Any]) -> None:
    async with lite(entrance="open") as running:
        running.key()
        assert (await running.client.get("/v1/models")).status == 200


async def test_a_server_for_others_needs_keys_even_before_the_first(
    lite: Callable[..., Any],
) -> None:
    async with lite(entrance="keys") as running:
        assert (await running.client.get("/v1/models")).status == 401


async def test_H3_a_missing_key(lite: Callable[..., Any]) -> None:
    async with lite(entrance="keys") as running:
        for headers in ({}, {"authorization": "Basic x"}, {"authorization": "Bearer "}):
            reply = await running.client.request("GET", "/v1/models", b"", headers)
            assert reply.status == 401
            assert reply.error["code"] == "invalid_api_key"
            assert reply.error["message"].startswith("You didn't provide an API key.")
            assert reply.headers["www-authenticate"] == "Bearer"
        assert running.slept == []


async def test_a_key_in_azures_header(lite: Callable[..., Any]) -> None:
    """It opens the same, and a wrong one waits the same. ``Authorization`` goes first."""
    async with lite() as running:
        secret = running.key().headers["authorization"].removeprefix("Bearer ")
        wrong = "sk-af-0123456789abcdefghijklmnopqrstuvwxyz"
        for headers, status in (
            ({"api-key": secret}, 200),
            ({"api-key": f" {secret} "}, 200),
            ({"api-key": wrong}, 401),
            ({"api-key": ""}, 401),
            ({"api-key": wrong, "authorization": f"Bearer {secret}"}, 200),
            ({"api-key": secret, "authorization": "Basic x"}, 401),
        ):
            reply = await running.client.request("GET", "/v1/models", b"", headers)
            assert reply.status == status, headers
        reply = await running.client.request("GET", "/v1/models", b"", {"api-key": wrong})
        assert reply.error["message"] == "Incorrect API key provided: sk-af***yz."
        assert running.slept == [0.5, 1]


async def test_H3_a_wrong_key_is_masked_slowed_and_counted(
    lite: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    secret = "sk-af-0123456789abcdefghijklmnopqrstuvwxyz"  # noqa: S105 - made up
    async with lite() as running:
        good = running.key()
        with caplog.at_level(logging.DEBUG):
            for _ in range(3):
                reply = await running.client.with_key(secret).get("/v1/models")
        assert reply.status == 401
        assert reply.error["message"] == "Incorrect API key provided: sk-af***yz."
        assert reply.error["type"] == "invalid_request_error"
        assert reply.error["code"] == "invalid_api_key"
        assert running.slept == [0.5, 1, 2]
        assert secret not in caplog.text
        assert secret[8:20] not in caplog.text
        figures = (await good.get("/metrics")).body.decode()
        assert "afterword_ledger_refused_keys_total 3.0" in figures
        # A client with a good key does not wait.
        assert len(running.slept) == 3


async def test_a_revoked_key_ends_and_a_new_one_begins(running: Team) -> None:
    known = running.key("a")
    assert (await known.get("/v1/models")).status == 200
    running.keys.revoke("a")
    running.refresh()
    assert (await known.get("/v1/models")).status == 401


async def test_a_key_made_while_it_is_asked_for(lite: Callable[..., Any]) -> None:
    """The wait of a wrong key is longer than the time until the server knows of it."""
    async with lite() as running:
        running.key("first")
        made = running.keys.create(KeyTerms(name="second"))
        asked = asyncio.create_task(running.client.with_key(made.secret).get("/v1/models"))
        running.refresh()
        assert (await asked).status == 200


async def test_R1_models_of_a_key(lite: Callable[..., Any]) -> None:
    """A model that the key does not allow is not found, on any route, before any other error."""
    async with lite() as running:
        one = running.key("one", models=("toy",))
        names = [m["id"] for m in (await one.get("/v1/models")).json()["data"]]
        assert names == ["toy", "alias"]
        by_alias = running.key("two", models=("alias",))
        assert [m["id"] for m in (await by_alias.get("/v1/models")).json()["data"]] == ["alias"]
        assert (
            await by_alias.post(PATH, {**BODY, "model": "alias", "max_tokens": 1})
        ).status == 200
        for client, model in ((one, "other"), (by_alias, "toy"), (one, "none")):
            for reply in (
                await client.post(PATH, {"model": model, "prompt": [7] * 300, "max_tokens": 5}),
                await client.post(f"/v1/engines/{model}/completions", {"prompt": "a"}),
                await client.get(f"/v1/models/{model}"),
                await client.post("/tokenize", {"model": model, "prompt": "a"}),
                await client.post("/detokenize", {"model": model, "tokens": [1]}),
                await client.get(f"/tokenizer_info?model={model}"),
            ):
                assert reply.status == 404
                assert reply.error["code"] == "model_not_found"
                assert f"`{model}`" in reply.error["message"]
        nothing = running.key("three", models=("gone",))
        assert (await nothing.get("/v1/models")).json()["data"] == []
        assert (await nothing.post("/tokenize", {"prompt": "a"})).status == 404


# Records.


async def test_every_answer_is_recorded_as_it_says(running: Team) -> None:
    known = running.key(budget_tokens=10**6, tpm=10**6, rpm=1000)
    answers = [
        (await known.post(PATH, {**BODY, **body})).json()
        for body in (
            {"max_tokens": 5, "user": "u1"},
            {"max_tokens": 0, "echo": True, "logprobs": 1},
            {"max_tokens": 7, "n": 3, "prompt": ["a", "b"]},
            {"max_tokens": 4, "n": 1, "best_of": 3, "user": "ü\u2028"},
            {"max_tokens": 50, "stop": ["e"]},
            {"prompt": "a" * 40, "max_tokens": 1},
        )
    ]
    records = {record.id: record for record in await running.records()}
    for answer in answers:
        agrees(records[answer["id"]], answer)
    first = records[answers[0]["id"]]
    assert (first.status, first.user, first.stream, first.model) == ("answered", "u1", False, "toy")
    assert records[answers[3]["id"]].user == "ü\u2028"
    assert len(records) == len(answers)
    nothing_is_held(running)
    view = running.keys.find("k")
    total = sum(answer["usage"]["total_tokens"] for answer in answers)
    assert (view.period_used_tokens, view.period_reserved_tokens) == (total, 0)


async def test_streams_are_recorded_before_their_last_byte(running: Team) -> None:
    """A client that saw the end has its request in the journal, whatever happens next."""
    known = running.key(budget_tokens=10**6)
    body = {**BODY, "stream": True, "max_tokens": 6, "stream_options": {"include_usage": True}}
    blocked = asyncio.Event()
    exchange, run = known.begin(body, blocked=blocked)
    await exchange.frames(1)
    assert running.ledger.access.figures().unsettled == 1
    blocked.set()
    while b"[DONE]" not in exchange.sent[-1].get("body", b""):
        await exchange.frames(len(exchange.sent))
    assert running.ledger.access.figures().unsettled == 0
    await run
    chunks = [json.loads(line[6:]) for line in exchange.reply.body.split(b"\n\n")[:-2]]
    (record,) = await running.records()
    agrees(record, chunks[-1])
    assert record.stream
    nothing_is_held(running)


@pytest.mark.parametrize("status", ["client_gone", "cancelled"])
async def test_a_request_that_is_left_pays_for_what_was_made(
    engine: sa.Engine, tmp_path: Path, status: str
) -> None:
    """Five tokens, then the model waits until the client is gone, or the server stops."""
    hold, steps = threading.Event(), itertools.count()

    def wait(_: Batch) -> None:
        if next(steps) >= 5:
            hold.wait()

    async with team(
        engine, tmp_path / "data", toy=lambda: toy_engine(before_decode=wait)
    ) as running:
        known = running.key(budget_tokens=10**6, tpm=10**6)
        exchange, run = known.begin({**BODY, "stream": True, "max_tokens": 200})
        try:
            await exchange.frames(1)
            if status == "cancelled":
                run.cancel()
            else:
                exchange.leave.set()
            await asyncio.wait([run])
        finally:
            hold.set()
        assert run.cancelled() == (status == "cancelled")
        (record,) = await running.records()
        assert record.status == status
        assert 1 <= record.completion_tokens <= 5
        assert record.prompt_tokens == 1
        nothing_is_held(running)


async def test_a_reader_that_stalls_and_leaves_pays_for_what_waited_for_it(running: Team) -> None:
    """The server made two hundred tokens while the client did not read a second frame."""
    known = running.key()
    blocked = asyncio.Event()
    exchange, run = known.begin({**BODY, "stream": True, "max_tokens": 200}, blocked=blocked)
    await exchange.frames(1)
    while running.engine.stats().generated_tokens < 200:
        await asyncio.sleep(0)
    exchange.leave.set()
    await run
    (record,) = await running.records()
    assert (record.status, record.completion_tokens) == ("client_gone", 200)


async def test_failures_are_recorded_with_what_they_cost(lite: Callable[..., Any]) -> None:
    steps = 0

    def fail(_: Batch) -> None:
        nonlocal steps
        steps += 1
        if steps % 5 == 0:
            raise DecodeError("broken")

    async with lite(toy=lambda: toy_engine(before_decode=fail)) as running:
        known = running.key(budget_tokens=10**6, concurrent=1)
        whole = await known.post(PATH, {**BODY, "max_tokens": 20})
        assert whole.status == 500
        streamed = await known.post(PATH, {**BODY, "max_tokens": 20, "stream": True})
        assert b'"error"' in streamed.body
        records = await running.records()
        assert [record.status for record in records] == ["failed", "failed"]
        assert all(0 < record.completion_tokens < 20 for record in records)
        nothing_is_held(running)


async def test_what_is_not_admitted_is_not_recorded(lite: Callable[..., Any]) -> None:
    """A request with an error or for a full waiting line leaves no record and costs nothing."""
    hold = threading.Event()
    engine = toy_engine(slots=1, max_waiting=1, before_decode=waiting_for(hold))
    async with lite(toy=lambda: engine) as running:
        known = running.key(rpm=2, tpm=1000, budget_tokens=1000, concurrent=2)
        assert (await known.post(PATH, {**BODY, "max_tokens": -1})).status == 400
        _, run = known.begin({**BODY, "max_tokens": 5})
        while not engine._unstarted:
            await asyncio.sleep(0)
        assert (await known.post(PATH, {**BODY, "max_tokens": 5})).status == 503
        hold.set()
        await run
        # Had the refused one counted, this would be the third.
        last = await known.post(PATH, {**BODY, "max_tokens": 5})
        assert last.status == 200
        assert last.headers["x-ratelimit-remaining-requests"] == "0"
        assert len(await running.records()) == 2
        nothing_is_held(running)


async def test_requests_without_a_key_are_recorded_too(lite: Callable[..., Any]) -> None:
    async with lite() as running:
        await running.client.complete(**{**BODY, "max_tokens": 2, "user": "me"})
        (record,) = await running.records()
        assert (record.key_id, record.user, record.completion_tokens) == (None, "me", 2)


# Limits.


async def test_H7_requests_per_minute(running: Team) -> None:
    known = running.key(rpm=2, tpm=1000)
    first = await known.post(PATH, {**BODY, "max_tokens": 9})
    assert {name: value for name, value in first.headers.items() if "ratelimit" in name} == {
        "x-ratelimit-limit-requests": "2", "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "1m0s", "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "990", "x-ratelimit-reset-tokens": "1m0s",
    }  # fmt: skip
    running.hand.now_s += 12.5
    await known.post(PATH, {**BODY, "max_tokens": 9})
    running.hand.now_s += 0.1
    refused = await known.post(PATH, {**BODY, "max_tokens": 9})
    assert refused.status == 429
    assert refused.error["type"] == refused.error["code"] == "rate_limit_exceeded"
    assert refused.error["message"] == (
        "Rate limit reached for toy on requests per min (RPM): Limit 2, Used 2, Requested 1. "
        "Please try again in 48s."
    )
    assert refused.headers["retry-after"] == "48"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-ratelimit-reset-requests"] == "59.9s"
    running.hand.now_s += 47.4
    assert (await known.post(PATH, {**BODY, "max_tokens": 9})).status == 200
    assert 'afterword_limited_total{limit="rpm"} 1.0' in (
        (await known.get("/metrics")).body.decode()
    )


async def test_every_answer_has_the_state_of_the_limits(running: Team) -> None:
    """Refusals and lists count nothing, and say what is left."""
    known = running.key(rpm=3, tpm=1000, budget_tokens=100)

    def state(reply: Reply) -> list[str]:
        names = ("remaining-requests", "remaining-tokens", "reset-requests")
        return [reply.headers[f"x-ratelimit-{name}"] for name in names]

    refused = await known.post(PATH, {**BODY, "n": 0})
    assert (refused.status, state(refused)) == (400, ["3", "1000", "0ms"])
    answered = await known.post(PATH, {**BODY, "max_tokens": 9})
    assert (answered.status, state(answered)) == (200, ["2", "990", "1m0s"])
    over_budget = await known.post(PATH, {**BODY, "max_tokens": 200})
    assert (over_budget.status, state(over_budget)) == (429, ["2", "990", "1m0s"])
    running.hand.now_s += 12.5
    for reply, status in (
        (await known.post(PATH, {**BODY, "model": "none"}), 404),
        (await known.get("/v1/models"), 200),
        (await known.get("/nothing"), 404),
        (await known.get("/health"), 200),
    ):
        assert (reply.status, state(reply)) == (status, ["2", "990", "47.5s"])
    assert len(await running.records()) == 1
    nothing_is_held(running)


async def test_H7_tokens_per_minute_count_what_was_used(running: Team) -> None:
    """A request reserves its worst case; tokens that it does not use are free again."""
    known = running.key(tpm=100)
    for _ in range(10):
        reply = await known.post(PATH, {**BODY, "max_tokens": 9})
        assert reply.status == 200
    assert reply.headers["x-ratelimit-remaining-tokens"] == "0"
    assert "x-ratelimit-limit-requests" not in reply.headers
    refused = await known.post(PATH, {**BODY, "max_tokens": 0})
    assert refused.status == 429
    assert refused.headers["retry-after"] == "60"
    running.hand.now_s += 60
    early = await known.post(
        PATH, {**BODY, "max_tokens": 60, "stop": ["e", " ", "a", "o", "i"][:4]}
    )
    used = early.json()["usage"]["total_tokens"]
    assert used < 61
    after = await known.post(PATH, {**BODY, "max_tokens": 100 - used - 1})
    assert after.status == 200


async def test_H7_a_request_that_never_fits(lite: Callable[..., Any]) -> None:
    """The error says so and has no Retry-After."""
    async with lite() as running:
        known = running.key(tpm=100)
        refused = await known.post(PATH, {**BODY, "max_tokens": 50, "n": 2})
        assert refused.status == 429
        assert refused.error["message"].startswith(
            "Request too large for toy on tokens per min (TPM): Limit 100, Used 0, Requested 101."
        )
        assert "retry-after" not in refused.headers


async def test_H7_requests_at_once(lite: Callable[..., Any]) -> None:
    hold = threading.Event()
    engine = toy_engine(before_decode=waiting_for(hold))
    async with lite(toy=lambda: engine) as running:
        known = running.key(concurrent=1)
        _, run = known.begin({**BODY, "max_tokens": 1})
        while not running.ledger.access.figures().unsettled:
            await asyncio.sleep(0)
        refused = await known.post(PATH, {**BODY, "max_tokens": 1})
        hold.set()
        await run
        assert refused.status == 429
        assert refused.headers["retry-after"] == "1"
        assert (await known.post(PATH, {**BODY, "max_tokens": 1})).status == 200


async def test_H8_a_spent_budget(running: Team) -> None:
    known = running.key(budget_tokens=100, budget_per="day")
    assert (await known.post(PATH, {**BODY, "max_tokens": 59})).status == 200
    refused = await known.post(PATH, {**BODY, "max_tokens": 40})
    assert refused.status == 429
    assert refused.error["type"] == refused.error["code"] == "insufficient_quota"
    assert refused.error["message"].endswith(
        "This request may take 41 tokens; of 100 a day, 40 are left. "
        "A max_tokens of at most 39 would fit."
    )
    # The next request can use at once what another gave back.
    assert (await known.post(PATH, {**BODY, "max_tokens": 39})).status == 200
    assert (await known.post(PATH, {**BODY, "max_tokens": 0})).status == 429
    running.hand.now_s += 86_400
    running.refresh()
    assert (await known.post(PATH, {**BODY, "max_tokens": 59})).status == 200
    nothing_is_held(running)


async def test_H7_H8_a_refusal_says_that_no_max_tokens_was_given_and_what_fits(
    lite: Callable[..., Any],
) -> None:
    ended = "the context is full or the server's default is reached; max_tokens of at most "
    async with lite() as running:
        for name, terms in (("b", {"budget_tokens": 50}), ("t", {"tpm": 50})):
            known = running.key(name, **terms)
            refused = await known.post(PATH, BODY)
            assert refused.status == 429
            message = refused.error["message"]
            assert "The request gives no max_tokens" in message
            assert message.endswith(f"{ended}49 would fit.")
            two = {**BODY, "prompt": ["a", "a"], "n": 2}
            message = (await known.post(PATH, two)).error["message"]
            assert message.endswith(f"{ended}12 would fit.")
            assert (await known.post(PATH, {**two, "max_tokens": 12})).status == 200
            long = {**BODY, "prompt": "a" * 60, "max_tokens": 0}
            message = (await known.post(PATH, long)).error["message"]
            assert message.endswith("The prompt alone takes 60.")
        other = running.key("other", budget_tokens=50)
        many = {**BODY, "max_tokens": 30, "n": 2}
        message = (await other.post(PATH, many)).error["message"]
        assert message.endswith("For each answer, a max_tokens of at most 24 would fit.")
        assert (await other.post(PATH, {**many, "max_tokens": 24})).status == 200


async def test_a_hundred_clients_race_for_the_last_thousand_tokens(running: Team) -> None:
    """Budget, tokens and requests per minute admit exactly as many as fit."""
    for name, terms in (("b", {"budget_tokens": 1000}), ("t", {"tpm": 1000}), ("r", {"rpm": 33})):
        known = running.key(name, **terms)
        racing = [known.begin({**BODY, "max_tokens": 29}) for _ in range(100)]
        for _, run in racing:
            await run
        statuses = [exchange.reply.status for exchange, _ in racing]
        assert statuses.count(200) == 33
        assert statuses.count(429) == 67
    records = await running.records()
    assert len(records) == 99
    assert sum(record.prompt_tokens + record.completion_tokens for record in records) == 99 * 30
    nothing_is_held(running)


async def test_limits_in_redis(lite: Callable[..., Any], redis_url: str) -> None:
    async with lite(redis=redis_url) as running:
        known = running.key(rpm=20, tpm=10_000, concurrent=50)
        racing = [known.begin({**BODY, "max_tokens": 3}) for _ in range(40)]
        for _, run in racing:
            await run
        assert [exchange.reply.status for exchange, _ in racing].count(200) == 20
        exchange, run = known.begin({**BODY, "max_tokens": 3})
        exchange.leave.set()
        await run
        nothing_is_held(running)


async def test_redis_that_is_away_at_the_start_is_said(
    lite: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with lite(redis=f"redis://127.0.0.1:{port}") as running:
        thread = running.ledger.access._limiter_thread
        assert thread is not None
        # The thread is one, so this runs after the question.
        await asyncio.wrap_future(thread.submit(int))
        assert "redis cannot be reached: requests of keys with limits" in caplog.text
        assert (await running.client.post(PATH, {**BODY, "max_tokens": 1})).status == 200


async def test_redis_that_is_silent_holds_nobody_up(
    lite: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question takes seconds then, and they stand in line."""
    monkeypatch.setattr("afterword.ledger.access._CLAIM_S", 0.01)
    async with lite() as running:
        known = running.key(concurrent=1)
        answers = threading.Event()
        with ThreadPoolExecutor(1) as thread:
            thread.submit(answers.wait)
            monkeypatch.setattr(running.ledger.access, "_limiter_thread", thread)
            for _ in range(3):
                reply = await known.post(PATH, {**BODY, "max_tokens": 1})
                assert (reply.status, reply.headers["retry-after"]) == (503, "1")
                assert reply.error["code"] == "ledger_unavailable"
            answers.set()
        monkeypatch.undo()
        assert (await known.post(PATH, {**BODY, "max_tokens": 1})).status == 200
        nothing_is_held(running)


async def test_nothing_is_asked_per_token(
    lite: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of any length costs two journal lines, one claim and one record."""
    async with lite() as running:
        known = running.key(rpm=10, tpm=10**6, budget_tokens=10**6)
        calls: list[str] = []

        def count(owner: Any, name: str) -> None:
            exactly = getattr(owner, name)

            def counted(*args: Any, **kwargs: Any) -> Any:
                calls.append(name)
                return exactly(*args, **kwargs)

            monkeypatch.setattr(owner, name, counted)

        ledger = running.ledger.access
        for owner, names in (
            (ledger, ("authenticate", "reserve", "settle")),
            (ledger._journal, ("admit", "settle")),
            (ledger._limiter, ("acquire", "settle")),
            (running.ledger.writer, ("claim", "ended")),
        ):
            for name in names:
                count(owner, name)
        seen = []
        for tokens in (1, 200):
            calls.clear()
            await known.post(PATH, {**BODY, "max_tokens": tokens, "stream": True})
            seen.append(list(calls))
        assert seen[0] == seen[1]
        assert len(seen[0]) == 9


async def test_the_log_says_what_was_refused_and_why(
    lite: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with lite() as running:
        alice = running.key("alice", rpm=2, budget_tokens=50)
        boss = running.key("boss", models=("toy",))
        for client, path, body in (
            (alice, PATH, {**BODY, "max_tokens": 5}),
            (alice, PATH, {**BODY, "max_tokens": 60}),
            (alice, PATH, {**BODY, "max_tokens": 5}),
            (alice, PATH, {**BODY, "max_tokens": 5}),
            (boss, PATH, {**BODY, "model": "other"}),
            (boss, PATH, {**BODY, "temperature": 9, "model": "nobody's"}),
            (boss, "/v1/engines/none/completions", {"prompt": "a"}),
            (running.client, PATH, {**BODY, "prompt": "a secret"}),
        ):
            await client.post(path, body)
        await boss.request("POST", PATH, b"no JSON")
        for path in ("/tokenize", "/detokenize", "/apply-template"):
            await boss.post(path, {"prompt": "a", "tokens": [97], "model": "nobody's"})
        await boss.get("/tokenizer_info?model=none")
        await boss.get("/v1/models/none")
    lines = [json.loads(one.getMessage()) for one in caplog.records if "access" in one.name]
    names = ("status", "key_name", "model", "code", "param", "limit")
    assert [tuple(line.get(name) for name in names) for line in lines] == [
        (200, "alice", "toy", None, None, None),
        (429, "alice", "toy", "insufficient_quota", None, "budget"),
        (200, "alice", "toy", None, None, None),
        (429, "alice", "toy", "rate_limit_exceeded", None, "rpm"),
        (404, "boss", "other", "model_not_found", "model", None),
        (400, "boss", "nobody's", "invalid_value", "temperature", None),
        (404, "boss", "none", "model_not_found", "model", None),
        (401, None, None, "invalid_api_key", None, None),
        (400, "boss", None, None, None, None),
        *[(400, "boss", "nobody's", None, param, None) for param in ("tokens", "prompt", "prompt")],
        *[(404, "boss", "none", "model_not_found", "model", None)] * 2,
    ]
    assert {line["client"] for line in lines} == {"127.0.0.1"}
    assert "a secret" not in caplog.text


# Outages.


async def test_a_database_that_is_away(
    lite: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Budgets are not exceeded, the rest goes on, and everything is recorded afterwards."""
    async with lite() as running:
        free, budgeted = running.key("free", rpm=100), running.key("budgeted", budget_tokens=1000)
        with monkeypatch.context() as patch:
            away(running, patch)
            assert (await free.post(PATH, {**BODY, "max_tokens": 5})).status == 200
            refused = await budgeted.post(PATH, {**BODY, "max_tokens": 5})
            assert refused.status == 503
            assert refused.error["code"] == "ledger_unavailable"
            assert refused.headers["retry-after"] == "1"
            ready = await running.client.get("/ready")
            assert (ready.status, ready.json()["ledger"]) == (200, "unreachable")
            figures = running.ledger.access.figures()
            assert (figures.reachable, figures.pending_writes) == (False, 1)
        running.hand.now_s += 1
        running.refresh()
        assert (await budgeted.post(PATH, {**BODY, "max_tokens": 5})).status == 200
        assert len(await running.records()) == 2
        nothing_is_held(running)


async def test_a_database_that_is_away_may_stop_everything(
    lite: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lite(serve_without_database=False) as running:
        free = running.key("free")
        with monkeypatch.context() as patch:
            away(running, patch)
            assert (await free.post(PATH, {**BODY, "max_tokens": 5})).status == 503
            assert (await running.client.get("/ready")).status == 503
        running.hand.now_s += 1
        running.refresh()
        assert (await free.post(PATH, {**BODY, "max_tokens": 5})).status == 200


def away(running: Team, patch: pytest.MonkeyPatch) -> None:
    """The database refuses connections, and the server has noticed."""

    def refuse(*_: object) -> None:
        raise sa.exc.OperationalError("", {}, ConnectionRefusedError("refused"))

    patch.setattr(running.ledger.writer, "_transaction", refuse)
    running.refresh()


async def test_a_full_disk_refuses_before_anything_is_computed(
    lite: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lite() as running:
        known = running.key(rpm=1, budget_tokens=10)
        with monkeypatch.context() as patch:

            def full(*_: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(journal, "reserve_space", full)
            running.ledger.access._journal._segments[-1].written_bytes = 1 << 20
            refused = await known.post(PATH, {**BODY, "max_tokens": 5})
            assert refused.status == 503
            assert refused.error["code"] == "ledger_unavailable"
            assert (await running.client.get("/ready")).status == 503
        assert running.engine.stats().decoded_tokens == 0
        running.hand.now_s += 6
        running.refresh()
        assert (await running.client.get("/ready")).status == 200
        assert (await known.post(PATH, {**BODY, "max_tokens": 5})).status == 200
        nothing_is_held(running)


async def test_a_disk_that_fails_keeps_no_limit_and_no_budget(
    lite: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that is refused after its admission gives everything back."""
    async with lite() as running:
        known = running.key(concurrent=1, budget_tokens=100)
        (view,) = running.keys.all()
        principal = Principal(view.id, "k", None, admin=False)
        ask = Ask(id="r", model="toy", user=None, stream=False, most_tokens=60)
        reservation = await running.ledger.access.reserve(principal, ask)
        with monkeypatch.context() as patch:

            def fail(*_: object) -> int:
                raise OSError(5, "Input/output error")

            patch.setattr(os, "pwrite", fail)
            reservation.release()
        nothing_is_held(running)
        assert (await known.post(PATH, {**BODY, "max_tokens": 5})).status == 200


async def test_records_on_the_disk_before_the_last_byte(
    lite: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []

    def sync(descriptor: int) -> None:
        synced.append(descriptor)
        sync_file(descriptor)

    monkeypatch.setattr(journal, "sync_file", sync)
    async with lite(sync_always=True) as running:
        before = len(synced)
        await running.client.complete(**{**BODY, "max_tokens": 1})
        assert len(synced) > before


# The routes of operators.


async def test_keys_and_usage_over_http(running: Team) -> None:
    admin = running.key("root", admin=True)
    terms = {"name": "bob", "models": ["toy"], "rpm": 5, "budget_tokens": 50, "expires": "1d"}
    made = (await admin.post("/admin/v1/keys", terms)).json()
    assert made["object"] == "key"
    assert made["key"].startswith("sk-af-")
    assert made["expires_at"] - made["created_at"] == 86_400
    running.refresh()
    bob = running.client.with_key(made["key"])
    answer = (await bob.post(PATH, {**BODY, "max_tokens": 4, "user": "u"})).json()
    await running.records()
    listed = (await admin.get("/admin/v1/keys")).json()["data"]
    by_name = {key["name"]: key for key in listed}
    assert {name: key["used_tokens"] for name, key in by_name.items()} == {"root": 0, "bob": 5}
    assert "key" not in by_name["bob"]
    assert (await admin.get("/admin/v1/keys/bob")).json() == by_name["bob"]
    sums = {
        by: (await admin.get(f"/admin/v1/usage?by={by}")).json()["data"][0]["group"]
        for by in ("key", "model", "user", "day")
    }
    assert sums == {"key": "bob", "model": "toy", "user": "u", "day": "2026-11-25"}
    page = (await admin.get("/admin/v1/usage/requests?key=bob&since=1h")).json()
    assert [one["id"] for one in page["data"]] == [answer["id"]]
    assert page["has_more"] is False
    rotated = (await admin.post(f"/admin/v1/keys/{made['id']}/rotate", b"")).json()
    revoked = (await admin.delete("/admin/v1/keys/bob")).json()
    assert revoked["revoked_at"] is not None
    running.refresh()
    for secret in (made["key"], rotated["key"]):
        assert (await running.client.with_key(secret).get("/v1/models")).status == 401


async def test_names_of_keys_may_have_slashes(lite: Callable[..., Any]) -> None:
    async with lite() as running:
        admin = running.key("root", admin=True)
        name = "team/alice & bob/rotate"
        made = (await admin.post("/admin/v1/keys", {"name": name})).json()
        path = "/admin/v1/keys/team%2Falice%20%26%20bob%2Frotate"
        assert (await admin.get(path)).json()["id"] == made["id"]
        rotated = await admin.post(f"{path}/rotate", b"")
        assert rotated.json()["id"] == made["id"]
        assert (await admin.delete(path)).json()["revoked_at"] is not None


async def test_all_keys_are_listed_however_many(
    lite: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_PAGE_KEYS", 2)
    async with lite() as running:
        admin = running.key("root", admin=True)
        for count in range(1, 6):
            listed = (await admin.get("/admin/v1/keys")).json()
            assert listed["object"] == "list"
            assert len({key["id"] for key in listed["data"]}) == len(listed["data"]) == count
            running.key(f"k{count}")


async def test_pages_of_requests(lite: Callable[..., Any]) -> None:
    async with lite() as running:
        admin = running.key("root", admin=True)
        ids = list[list[str]]()
        for moment in range(4):
            running.hand.now_s += 1
            ids.append([])
            for _ in range(1 + moment % 2):
                reply = await admin.post(PATH, {**BODY, "max_tokens": 1})
                ids[-1].append(reply.json()["id"])
        await running.records()
        seen: list[str] = []
        more = True
        while more:
            after = seen[-1] if seen else ""
            page = (await admin.get(f"/admin/v1/usage/requests?limit=2&after={after}")).json()
            seen += [one["id"] for one in page["data"]]
            more = page["has_more"]
        # As they began; those of one moment by their ids.
        assert seen == [one for began in ids for one in sorted(began)]
        nobody = await admin.get("/admin/v1/usage/requests?after=cmpl-nobody")
        assert (nobody.status, nobody.error["param"]) == (400, "after")


async def test_R19_integers_of_admin_bodies(lite: Callable[..., Any]) -> None:
    """As in every other body, a number without a fraction is an integer."""
    async with lite() as running:
        admin = running.key("root", admin=True)
        given = {"rpm": 2.0, "tpm": 3e3, "concurrent": 4, "budget_tokens": 2.0**52}
        made = (await admin.post("/admin/v1/keys", {"name": "a", **given})).json()
        assert {name: made[name] for name in given} == given
        assert all(type(made[name]) is int for name in given)


async def test_admin_routes_refuse(lite: Callable[..., Any]) -> None:
    async with lite(entrance="keys_if_any") as running:
        # Without keys nobody is an operator.
        assert (await running.client.post("/admin/v1/keys", {"name": "x"})).status == 403
        admin, plain = running.key("root", admin=True), running.key("plain")
        assert (await plain.get("/admin/v1/keys")).error["code"] == "insufficient_permissions"

        async def refused(reply: Reply, param: str | None) -> None:
            assert reply.status == 400, reply.body
            assert reply.error["param"] == param

        await refused(await admin.post("/admin/v1/keys", {}), "name")
        await refused(await admin.post("/admin/v1/keys", {"name": None}), "name")
        await refused(await admin.post("/admin/v1/keys", {"name": 5}), "name")
        await refused(await admin.post("/admin/v1/keys", {"name": "a", "rpm": "x"}), "rpm")
        await refused(await admin.post("/admin/v1/keys", {"name": "a", "rpm": 0}), "rpm")
        for rpm in (2.5, True, "2", [2], 1e300, 2.0**53):
            await refused(await admin.post("/admin/v1/keys", {"name": "a", "rpm": rpm}), "rpm")
        for unknown in ({"nope": 1}, {"nope": None}, {"Name": "a"}):
            reply = await admin.post("/admin/v1/keys", {"name": "a", **unknown})
            await refused(reply, next(iter(unknown)))
            assert reply.error["message"].startswith("Unrecognized request argument supplied: ")
        await refused(await admin.post("/admin/v1/keys", []), None)
        await refused(await admin.post("/admin/v1/keys/plain/rotate", {"overlap": 5}), "overlap")
        await refused(await admin.post("/admin/v1/keys", b'{"name": "a", "rpm": 1e400}'), "rpm")
        await refused(await admin.post("/admin/v1/keys", {"name": "root"}), "name")
        await refused(
            await admin.post("/admin/v1/keys", {"name": "a", "expires": "soon"}), "expires"
        )
        await refused(await admin.post("/admin/v1/keys", b"{"), None)
        await refused(
            await admin.post("/admin/v1/keys", b'{"name": "a", "rpm": 1, "rpm": 1000}'), "rpm"
        )
        await refused(await admin.get("/admin/v1/keys/nobody"), "key")
        await refused(await admin.get("/admin/v1/usage?by=colour"), "by")
        await refused(await admin.get("/admin/v1/usage?since=yesterday"), "since")
        await refused(await admin.get("/admin/v1/usage/requests?limit=0"), "limit")
        await refused(await admin.get("/admin/v1/usage?key=nobody"), "key")
        # What is ignored may have been meant to show less, or to make less.
        await refused(await admin.get("/admin/v1/usage?from=1h"), "from")
        await refused(await admin.get("/admin/v1/usage/requests?limt=5"), "limt")
        await refused(await admin.get("/admin/v1/keys?limit=5"), "limit")
        await refused(await admin.get("/admin/v1/keys/plain?usage=1"), "usage")
        await refused(await admin.get("/admin/v1/usage?since=1h&since=7d"), "since")
        await refused(await admin.get("/admin/v1/usage/requests?by=user"), "by")
        await refused(await admin.request("DELETE", "/admin/v1/keys/plain?dry_run=1"), "dry_run")
        assert (await plain.get("/v1/models")).status == 200
        for path, methods in (
            ("/admin/v1/keys", "GET, HEAD, POST"),
            ("/admin/v1/keys/plain", "DELETE, GET, HEAD"),
        ):
            reply = await admin.request("PUT", path)
            assert (reply.status, reply.headers["allow"]) == (405, methods)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_the_tokenizer_counts_in_the_limits(running: Team, path: str) -> None:
    """A request is a request, and no tokens are counted for it."""
    client = running.key(rpm=2, tpm=10, budget_tokens=10)
    body: dict[str, Any] = {"model": "toy", "prompt": "a" * 200}
    if path == "/detokenize":
        body = {"model": "toy", "tokens": [1] * 200}
    first, second, third = [await client.post(path, body) for _ in range(3)]
    assert (first.status, second.status, third.status) == (200, 200, 429)
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert second.headers["x-ratelimit-remaining-tokens"] == "10"
    assert third.error["code"] == "rate_limit_exceeded"
    records = await running.records()
    assert [(r.status, r.prompt_tokens, r.completion_tokens) for r in records] == [
        ("answered", 0, 0)
    ] * 2
    nothing_is_held(running)


async def test_the_tokenizer_counts_as_concurrent_until_it_ends(
    running: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = running.key(concurrent=1)
    begun, hold = threading.Event(), threading.Event()
    real = tokens.tokenize

    def slow(*given: Any) -> tokens.Tokenized:
        begun.set()
        hold.wait()
        return real(*given)

    monkeypatch.setattr(tokens, "tokenize", slow)
    # Spaces behind the JSON make the body long enough for the tokenizer's thread.
    body = json.dumps({"model": "toy", "prompt": "a"}).encode() + b" " * 5000
    running_one = asyncio.create_task(client.post("/tokenize", body))
    await asyncio.to_thread(begun.wait)
    assert (await client.post("/tokenize", {"model": "toy", "prompt": "b"})).status == 429
    hold.set()
    assert (await running_one).status == 200
    assert (await client.post("/tokenize", {"model": "toy", "prompt": "b"})).status == 200


@pytest.mark.parametrize(
    ("scope", "shares"), [("all", "111"), ("principal", "010"), ("key", "000")]
)
async def test_who_shares_computed_prompts(
    lite: Callable[..., Any], scope: str, shares: str
) -> None:
    """``cached_tokens`` tells a key about prompts of its own scope alone; answers are the same."""
    async with lite(cache_scope=scope) as running:
        names = ("ann/one", "bob", "ann/two", "cy")
        clients = [running.key(name) for name in names]
        body: dict[str, Any] = {
            "prompt": "what did the others ask",
            "max_tokens": 2,
            "seed": 3,
            "logprobs": 1,
        }
        answers = [await client.complete(**body) for client in clients]
        cached = [a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in answers]
        assert cached[0] == 0
        assert "".join("1" if tokens else "0" for tokens in cached[1:]) == shares
        assert all(answer["choices"] == answers[0]["choices"] for answer in answers)
        again = await clients[0].complete(**body)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


async def test_failed_keys_of_clients_behind_a_proxy_wait_apart(lite: Callable[..., Any]) -> None:
    """The delay is the client's, as a trusted proxy names it. Others cannot choose an address."""
    trusted = (ipaddress.ip_network("127.0.0.0/8"),)
    for proxies, waits in ((trusted, [0.5, 0.5, 1.0]), ((), [0.5, 1.0, 2.0])):
        async with lite(proxies=proxies, entrance="keys") as running:
            for number, client in enumerate((b"203.0.113.1", b"203.0.113.2", b"203.0.113.2")):
                headers = {
                    "authorization": f"Bearer sk-wrong-{number}",
                    "x-forwarded-for": client.decode(),
                }
                reply = await Client(running.client.app, headers).get("/v1/models")
                assert reply.status == 401
            assert running.slept == waits
