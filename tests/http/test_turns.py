"""One request never holds the event loop: what it does between two turns is bounded."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from asyncio.events import Handle
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import sqlalchemy as sa

from afterword.completion.old_tokens import OldTokens
from afterword.completion.plan import make_plan
from afterword.core.alias import Alias
from afterword.engine import toy
from afterword.engine.toy import toy_engine
from afterword.ledger.database import connect, prepare, sqlite_url
from afterword.ledger.tables import keys, secrets, usage
from conftest import make_client
from ledger.team import team
from support.asgi import Client, Reply

MOST_STEPS = 400_000
"""Instructions of Python in one turn of the loop: 3 to 8 ms, and 20 are allowed."""
MANY = 4000


class Turns:
    """Counts the instructions of each turn of the loop in this thread.

    Those of the toy's tokenizer do not count, because a real one has none.
    """

    def __init__(self) -> None:
        self.most = 0
        self._steps = 0
        self._counts = False

    async def ask(self, client: Client, path: str, body: Any = None) -> Reply:
        """An answer, asked for in a task of its own. Turns count until it is there."""
        raw = b"" if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        asked = asyncio.ensure_future(client.request(method, path, raw))
        self._counts = True
        reply = await asked
        self._counts = False
        return reply

    def run(self, handle: Handle) -> None:
        """Run one callback of the loop."""
        if not self._counts:
            _run(handle)
            return
        self._steps = 0
        sys.settrace(self._enter)
        try:
            _run(handle)
        finally:
            sys.settrace(None)
            self.most = max(self.most, self._steps)

    def _enter(self, frame: FrameType, *_: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename == toy.__file__:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._step

    def _step(self, _frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        self._steps += event == "opcode"
        return self._step


_run = Handle._run


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Turns]:
    counted, before = Turns(), sys.gettrace()

    def run(handle: Handle) -> None:
        counted.run(handle)

    monkeypatch.setattr(Handle, "_run", run)
    yield counted
    monkeypatch.undo()
    sys.settrace(before)


def schema(properties: int) -> dict[str, Any]:
    names = [f"property_{i}" for i in range(properties)]
    values = {name: {"enum": [f"{name}_{i}" for i in range(20)]} for name in names}
    return {"type": "object", "properties": values, "required": names}


LINES = "".join(f'rule_{i}: "{i}" rule_{i + 1}\n' for i in range(3000))
LONG = "ab " * 300
ANSWERED: dict[str, dict[str, Any]] = {
    "prompts": {"prompt": ["a"] * 2048, "max_tokens": 0},
    "choices": {"prompt": ["a"] * 16, "n": 128, "max_tokens": 0},
    "tokens": {"prompt": "a", "n": 128, "max_tokens": 4, "logprobs": 5},
    "scores": {"prompt": LONG, "n": 4, "max_tokens": 0, "echo": True, "logprobs": 5},
    "ranks": {"prompt": LONG, "n": 4, "max_tokens": 0, "prompt_logprobs": 20},
    "stops": {"prompt": "a", "n": 64, "max_tokens": 4, "stop": ["abcdefgh" * 50] * 16},
}
PLANNED: dict[str, dict[str, Any]] = {
    "text": {"prompt": "é" * 1_000_000},
    "ids": {"prompt": [1] * 1_000_000},
    "long prompts": {"prompt": [LONG * 2] * 512, "max_tokens": 0},
    "biases": {"prompt": "a", "max_tokens": 1, "logit_bias": {str(i): 1 for i in range(50_000)}},
    "a schema": {"prompt": "a", "structured_outputs": {"json": schema(300)}},
    "a grammar": {"prompt": "a", "structured_outputs": {"grammar": f"start: rule_0\n{LINES}"}},
    "unknown fields": {f"x{i}": i for i in range(20_000)},
    "candidates": {"prompt": ["a"] * 16, "best_of": 20, "max_tokens": 2},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ANSWERED)
async def test_answers(
    serve: Callable[..., Client], turns: Turns, name: str, *, stream: bool
) -> None:
    client = serve(toy_engine(check=False, context_tokens=1024, max_batch_tokens=512))
    body = {"model": "toy", "seed": 1, **ANSWERED[name], "stream": stream}
    assert (await turns.ask(client, "/v1/completions", body)).status == 200
    assert turns.most <= MOST_STEPS


@pytest.mark.parametrize("name", PLANNED)
async def test_plans(serve: Callable[..., Client], turns: Turns, name: str) -> None:
    client = serve(toy_engine(check=False, context_tokens=1024, max_batch_tokens=512))
    reply = await turns.ask(client, "/v1/completions", {"model": "toy", "seed": 1, **PLANNED[name]})
    assert reply.status in {200, 400}
    assert turns.most <= MOST_STEPS


ALIASES = {"chat": Alias("toy", "chat"), "old": Alias("toy", tokens="p50k_base")}


@pytest.fixture
async def aliases() -> AsyncIterator[Client]:
    """A server with an alias of each kind."""
    engine = toy_engine(check=False, context_tokens=1024, max_batch_tokens=512)
    tokenizer: Any = engine.tokenizer
    tokenizer.chat_template = "{% for one in messages %}user: {{ one.content }}\n{% endfor %}"
    old = {"p50k_base": OldTokens("p50k_base", {1: b"a"})}
    yield make_client({"toy": engine}, aliases=ALIASES, vocabularies=old)
    await engine.aclose()


@pytest.mark.parametrize(
    "body",
    [
        {"model": "chat", "prompt": ["a"] * 2048, "max_tokens": 0},
        {"model": "old", "prompt": [1] * 300_000},
    ],
)
async def test_prompts_of_aliases(aliases: Client, turns: Turns, body: dict[str, Any]) -> None:
    reply = await turns.ask(aliases, "/v1/completions", body)
    assert reply.status in {200, 400}
    assert turns.most <= MOST_STEPS


@pytest.mark.parametrize(
    "asked",
    [
        {"structured_outputs": {"regex": "a"}},
        {"response_format": {"type": "json_object"}},
        {"dry_multiplier": 1},
        {"model": "chat"},
    ],
)
async def test_what_may_take_long_is_for_a_thread(
    aliases: Client, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """However short the body is: a grammar of few bytes compiles long, in no Python."""
    planned = set[int]()

    def planning(*given: Any) -> Any:
        planned.add(threading.get_ident())
        return make_plan(*given)

    monkeypatch.setattr("afterword.completion.service.make_plan", planning)
    await aliases.complete(prompt="a", max_tokens=1)
    assert planned == {threading.get_ident()}
    planned.clear()
    await aliases.complete(prompt="a", max_tokens=1, **asked)
    assert planned.isdisjoint({threading.get_ident()})
    assert planned


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "a" * 1024, "return_token_strs": True}),
        ("/tokenize", {"prompt": " " * 4_000_000}),
        ("/detokenize", {"tokens": [97] * 1_000_000}),
        ("/tokenizer_info?vocabulary=true", None),
        ("/v1/models", None),
        ("/openapi.json", None),
        ("/docs", None),
        ("/metrics", None),
    ],
)
async def test_other_routes(
    serve: Callable[..., Client], turns: Turns, path: str, body: Any
) -> None:
    reply = await turns.ask(serve(toy_engine()), path, body)
    assert reply.status in {200, 400}
    assert turns.most <= MOST_STEPS


async def test_a_long_middle_with_probabilities(
    serve: Callable[..., Client], turns: Turns
) -> None:  # fmt: skip
    client = serve(toy_engine(check=False, context_tokens=1024, max_batch_tokens=512))
    body = {
        "input_prefix": "a", "input_suffix": "b", "n_predict": 900, "n_probs": 20,
        "logit_bias": {"98": 100},
    }  # fmt: skip
    for more in ({}, {"response_fields": ["completion_probabilities"]}):
        reply = await turns.ask(client, "/infill", {**body, **more})
        assert len(reply.json()["completion_probabilities"]) == 900
        assert turns.most <= MOST_STEPS


async def test_a_large_vocabulary(serve: Callable[..., Client], turns: Turns) -> None:
    engine = toy_engine()
    tokenizer: Any = engine.tokenizer
    tokenizer.pieces = [*tokenizer.pieces, *[b"piece"] * 200_000]
    reply = await turns.ask(serve(engine), "/tokenizer_info?vocabulary=true")
    assert len(reply.json()["vocabulary"]["pieces"]) == len(tokenizer.pieces)
    assert turns.most <= MOST_STEPS


def fill(database: sa.Engine) -> None:
    """Give a ledger many keys, and many users with a request each."""
    key: dict[str, Any] = {"budget_per": "day", "admin": False, "created_at": 1.0}
    record: dict[str, Any] = {
        "model": "toy", "stream": False, "status": "answered", "prompt_tokens": 1,
        "cached_tokens": 0, "completion_tokens": 1, "started_at": 1.0, "duration_ms": 1.0,
    }  # fmt: skip
    secret: dict[str, Any] = {"prefix": "sk-af-abcd", "created_at": 1.0}
    with database.begin() as connection:
        for table, rows in (
            (keys, [{**key, "id": f"key-{i}", "name": f"n{i}"} for i in range(MANY)]),
            (secrets, [{**secret, "digest": f"{i:064x}", "key_id": f"key-{i}"}
                       for i in range(MANY)]),
            (usage, [{**record, "id": f"cmpl-{i}", "user": f"u{i}"} for i in range(MANY)]),
        ):  # fmt: skip
            connection.execute(sa.insert(table), rows)


async def test_long_lists(tmp_path: Path, turns: Turns) -> None:
    database = connect(sqlite_url(tmp_path / "ledger.db"))
    prepare(database)
    fill(database)
    async with team(database, tmp_path / "data") as running:
        boss = running.key("boss", admin=True)
        for path, count in (
            ("/admin/v1/keys", MANY + 1),
            ("/admin/v1/usage?by=user", MANY),
            ("/admin/v1/usage/requests", 1000),
        ):
            reply = await turns.ask(boss, path)
            assert len(reply.json()["data"]) == count
            assert reply.json()["object"] == "list"
    database.dispose()
    assert turns.most <= MOST_STEPS


async def test_what_holds_the_loop_is_seen(turns: Turns) -> None:
    async def hold(*_: object) -> None:
        assert sum(i for i in range(200_000))

    with suppress(ValueError, IndexError):  # it answers nothing
        await turns.ask(Client(hold), "/")
    assert turns.most > MOST_STEPS
