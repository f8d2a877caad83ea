"""H: statuses, envelopes and headers."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from afterword.core.errors import EngineFailed
from afterword.core.limits import Limits
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.batching.runner import Batch, DecodeError
from afterword.engine.toy import ToyRunner, toy_engine
from afterword.http.lifecycle import Lifecycle
from afterword.http.middleware import AccessRecord
from conftest import make_client
from support.asgi import Client

PATH = "/v1/completions"


async def test_H1_code_is_text_or_null(client: Client) -> None:
    for body in ({}, {"model": "x"}, {"model": "toy", "n": 0}, {"model": "toy", "x": 1}):
        code = (await client.post(PATH, body)).error["code"]
        assert code is None or isinstance(code, str)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"[]", b"1", b"null", b'"x"', b"\xff\xfe", b"{} {}", b"{'a': 1}",
     b'{"model": "toy", "temperature": NaN}', b"[" * 100_000, b'{"a":' * 100_000,
     b'{"model": "\xff"}', b'{"model": "toy", "prompt": "\\ud800"}'],
)  # fmt: skip
async def test_H2_not_json(client: Client, body: bytes) -> None:
    reply = await client.post(PATH, body)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["message"].startswith("We could not parse the JSON body of your request.")


async def test_H14_a_byte_order_mark_is_skipped(client: Client) -> None:
    body = b'\xef\xbb\xbf{"model": "toy", "prompt": "a", "max_tokens": 1}'
    assert (await client.post(PATH, body)).status == 200
    assert (await client.post("/tokenize", b'\xef\xbb\xbf{"prompt": "a"}')).status == 200
    assert (await client.post(PATH, b"\xef\xbb\xbf" + body)).status == 400
    assert (await client.post(PATH, body.decode("utf-8-sig").encode("utf-16"))).status == 400


async def test_H14_compressed_bodies(client: Client) -> None:
    for path in (PATH, "/tokenize", "/detokenize"):
        reply = await client.request("POST", path, b"{}", {"content-encoding": "gzip"})
        assert reply.status == 415
        assert reply.error["type"] == "invalid_request_error"
        assert "Content-Encoding: gzip" in reply.error["message"]


async def test_R19_duplicate_keys(client: Client) -> None:
    for body in (
        b'{"model": "toy", "prompt": "a", "prompt": "b"}',
        b'{"model": "toy", "prompt": "a", "pro\\u006dpt": "b"}',
        b'{"model": "toy", "prompt": "a", "logit_bias": {"1": 1, "1": 2}}',
        b'{"model": "toy", "prompt": "a", "logit_bias": {"5": 1, "05": 2}}',
        b'{"model": "toy", "prompt": "a", "logit_bias": {"1": 1, "\\u0031": 2}}',
        b'{"model": "toy", "stream_options": {"include_usage": true, "include_usage": false}}',
        b'{"model": "toy", "stream": true, "stream_options": {"x": true, "x": true}}',
        b'{"model": "toy", "prompt": "a", "mirostat": 2, "mirostat": 0}',
        b'{"model": "toy", "prompt": "a", "tools": [{"a": 1, "a": 2}]}',
    ):
        reply = await client.post(PATH, body)
        assert reply.status == 400
        assert reply.error["message"].startswith("Duplicate request argument supplied: ")
    for body, name in (
        (b'"id_slot": 1, "id_slot": 2', "id_slot"),
        (b'"input_extra": [{"text": "a", "text": "b"}]', "input_extra.text"),
        (b'"id_slot": 1, "logit_bias": {"5": 1, "5": 2}', "logit_bias.5"),
    ):
        reply = await client.post(
            "/infill", b'{"input_prefix": "a", "input_suffix": "b", %b}' % body
        )
        assert reply.error["message"] == f"Duplicate request argument supplied: {name}"


async def test_R19_numbers_beyond_all_limits(client: Client) -> None:
    """They are JSON, so the answer names the field, also of a long body."""
    for pad in (b"", b" " * 70_000):
        for name, value in (
            ("temperature", b"1e400"), ("seed", b"-1E+999"), ("logit_bias", b'{"5": 1e309}'),
            ("prompt", b"[1, 2e400]"),
        ):  # fmt: skip
            reply = await client.post(
                PATH, b'{"model": "toy", %b"%b": %b}' % (pad, name.encode(), value)
            )
            assert reply.status == 400
            assert reply.error["param"] == name
            assert name in reply.error["message"]


async def test_H4_unknown_model(client: Client) -> None:
    for reply in (
        await client.post(PATH, {"model": "X", "prompt": "a"}),
        await client.post("/v1/engines/X/completions", {"prompt": "a"}),
        await client.get("/v1/models/X"),
        await client.post("/tokenize", {"model": "X", "prompt": "a"}),
        await client.get("/tokenizer_info?model=X"),
    ):
        assert reply.status == 404
        assert reply.error == {
            "message": "The model `X` does not exist or you do not have access to it.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }


@pytest.mark.parametrize("key", ["sk-af-abcdefghijklmnop", "SK-proj-abcdefghijklmnop"])
async def test_no_error_shows_a_key(client: Client, key: str) -> None:
    """One that was typed or configured in the wrong place."""
    for reply in (
        await client.post(PATH, {"model": key, "prompt": "a"}),
        await client.post(f"/v1/engines/{key}/completions", {"prompt": "a"}),
        await client.get(f"/v1/models/{key}"),
        await client.get(f"/tokenizer_info?model={key}"),
        await client.get(f"/v1/{key}"),
        await client.post(PATH, {"model": "toy", key: 1}),
        await client.request("POST", f"{PATH}?{key}=1", b"{}"),
        await client.post("/infill", {"input_prefix": "a", "input_suffix": "b", key: 1}),
    ):
        assert reply.status in {400, 404}
        assert key not in reply.body.decode()
        assert "***" in reply.error["message"]


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/toy", "/v1/engines", "/health", "/ready", "/openapi.json"]
)
async def test_a_route_without_parameters_ignores_a_query(client: Client, path: str) -> None:
    """Codex asks for ``/models?client_version=…``, and probes write the time."""
    plain, asked = await client.get(path), await client.get(f"{path}?client_version=1&_=2&_=3")
    assert (asked.status, asked.body) == (200, plain.body)


async def test_R18_a_query_has_no_parameters(client: Client) -> None:
    """All of them are in the body. Those of a query were ignored in silence."""
    body = {"model": "toy", "prompt": "a", "max_tokens": 1, "text": "a", "tokens": [97]}
    for path, fields in (
        (PATH, ("model", "prompt", "max_tokens")),
        ("/v1/engines/toy/completions", ("prompt", "max_tokens")),
        ("/tokenize", ("model", "prompt")),
        ("/detokenize", ("model", "tokens")),
    ):
        given = {name: body[name] for name in fields}
        reply = await client.post(f"{path}?stream=true", given)
        assert (reply.status, reply.error["param"]) == (400, "stream")
        assert reply.error["message"] == "Unrecognized query parameter supplied: stream"
        # Azure's clients send it with every request; an empty query is none.
        for query in ("?api-version=2024-06-01", "?"):
            assert (await client.post(f"{path}{query}", given)).status == 200
    reply = await client.get("/tokenizer_info?vocab=true")
    assert (reply.status, reply.error["param"]) == (400, "vocab")
    reply = await client.get("/tokenizer_info?model=toy&model=toy")
    assert (reply.status, reply.error["param"]) == (400, "model")
    assert reply.error["message"] == "Duplicate query parameter supplied: model"


async def test_H5_unknown_paths_and_methods(client: Client) -> None:
    for method, path, status in (
        ("POST", "/v1/x", 404),
        ("GET", "/nowhere", 404),
        ("GET", PATH, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/completions/", 405),
        ("POST", "/v1/completions/x", 404),
        ("POST", "/v1/completions//", 404),
        ("POST", "/v1/x//completions", 404),
        ("POST", "/v2/completions", 404),
    ):
        reply = await client.request(method, path)
        assert reply.status == status
        assert reply.error["type"] == "invalid_request_error"
        assert reply.error["message"] == f"Invalid URL ({method} {path})"
        assert ("allow" in reply.headers) == (status == 405)


async def test_H6_body_too_large(serve: Callable[..., Client]) -> None:
    client = serve(toy_engine(), limits=Limits(max_body_bytes=1000))
    reply = await client.post(PATH, {"model": "toy", "prompt": "a" * 1000})
    assert reply.status == 413
    assert reply.error["type"] == "invalid_request_error"
    assert "1000 bytes" in reply.error["message"]
    declared = await client.request("POST", PATH, b"", {"content-length": "1001"})
    assert declared.status == 413
    assert (await client.post(PATH, {"model": "toy", "max_tokens": 1})).status == 200


async def test_H9_waiting_line_full(serve: Callable[..., Client]) -> None:
    hold = threading.Event()

    def wait(_: Batch) -> None:
        hold.wait()

    engine = toy_engine(slots=1, max_waiting=2, before_decode=wait)
    client = serve(engine)
    body = {"model": "toy", "prompt": "a", "max_tokens": 2}
    begun = [client.begin(body) for _ in range(2)]
    while len(engine._unstarted) < 2:
        await asyncio.sleep(0)
    refused = await client.post(PATH, body)
    hold.set()
    for exchange, run in begun:
        await run
        assert exchange.reply.status == 200
    assert refused.status == 503
    assert refused.error["type"] == "server_error"
    assert refused.error["code"] == "engine_overloaded"
    assert int(refused.headers["retry-after"]) >= 1


async def test_H10_our_own_fault(serve: Callable[..., Client]) -> None:
    def fail(_: Batch) -> None:
        raise DecodeError("a detail of the engine")

    client = serve(toy_engine(before_decode=fail))
    reply = await client.post(PATH, {"model": "toy", "prompt": "a", "max_tokens": 1})
    assert reply.status == 500
    assert reply.error["type"] == "server_error"
    assert reply.headers["x-request-id"] in reply.error["message"]
    assert b"Traceback" not in reply.body
    assert b"detail" not in reply.body


@pytest.mark.parametrize(
    "more",
    [{}, {"temperature": 0}, {"echo": True, "logprobs": 2, "max_tokens": 0}, {"logprobs": 0},
     {"best_of": 3}, {"logit_bias": {"7": 100}}, {"logit_bias": {"7": -100}}, {"stream": True}],
)  # fmt: skip
async def test_H10_a_model_that_computes_no_numbers(
    serve: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """The answer has no null for a log-probability, and does not blame ``logit_bias``."""

    def no_numbers(runner: ToyRunner, _: int) -> npt.NDArray[np.float32]:
        return np.full(runner.vocabulary, np.nan, np.float32)

    monkeypatch.setattr(ToyRunner, "row", no_numbers)
    client = serve(toy_engine())
    body = {"model": "toy", "prompt": "abc", "max_tokens": 3, **more}
    reply = await client.post(PATH, body)
    # In front of another server, a stream begins a moment later: what failed by then is a 500 (S6).
    assert reply.status in ({200, 500} if more.get("stream") else {500})
    # A gateway only knows that the server behind it failed.
    said = (b"The model computed no numbers for this request", b"The server of this model failed")
    assert any(words in reply.body for words in said)
    assert b"choices" not in reply.body
    assert b"logit_bias" not in reply.body


@pytest.mark.parametrize("error", [ValueError("PROMPT OF THE CLIENT"), EngineFailed("It broke.")])
async def test_H10_what_nobody_expected_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The operator finds the place by the request id; a refusal is no fault."""

    def fail(*_: object) -> None:
        raise error

    records: list[AccessRecord] = []
    engine = toy_engine()
    client = make_client({"toy": engine}, observe=lambda record, _: records.append(record))
    assert (await client.post(PATH, {"model": "x"})).status == 404
    assert not caplog.records
    monkeypatch.setattr(BatchingEngine, "open", fail)
    reply = await client.post(PATH, {"model": "toy", "prompt": "a"})
    await engine.aclose()
    assert (reply.status, reply.error["type"]) == (500, "server_error")
    request_id = reply.headers["x-request-id"]
    assert request_id in reply.error["message"]
    (line,) = caplog.messages
    assert line.startswith(f"{request_id} failed: ")
    assert type(error).__name__ in line
    assert f"{__name__}.{fail.__qualname__}" in line
    assert "PROMPT" not in line + reply.body.decode()
    assert [record.outcome for record in records] == ["refused", "failed"]
    assert (records[0].code, records[0].param) == ("model_not_found", "model")


async def test_H10_logs_places_and_not_text(
    serve: Callable[..., Client], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Batch) -> None:
        raise RuntimeError("PROMPT OF THE CLIENT")

    client = serve(toy_engine(before_decode=fail))
    with caplog.at_level(logging.DEBUG):
        reply = await client.post(PATH, {"model": "toy", "prompt": "a", "max_tokens": 1})
    assert reply.status == 503
    assert "RuntimeError" in caplog.text
    assert "PROMPT" not in caplog.text
    assert str(Path(__file__).parent) not in caplog.text


async def test_H11_best_of_below_n(client: Client) -> None:
    error = await client.refuse(prompt="a", n=3, best_of=2)
    assert error["message"] == (
        "You requested that the server return more choices than it will generate (HINT: you must "
        "set 'n' (currently 3) to be at most 'best_of' (currently 2), or omit either parameter if "
        "you don't specifically want to use them.)"
    )


async def test_H12_context(client: Client) -> None:
    error = await client.refuse(prompt=[7] * 250, max_tokens=10)
    assert error["code"] == "context_length_exceeded"
    assert error["message"] == (
        "This model's maximum context length is 256 tokens, however you requested 260 tokens (250 "
        "in your prompt; 10 for the completion). Please reduce your prompt; or completion length."
    )


async def test_H13_seventeen_stops(client: Client) -> None:
    error = await client.refuse(prompt="a", stop=[str(i) for i in range(17)])
    assert error["param"] == "stop"
    assert error["code"] == "array_above_max_length"
    assert "16" in error["message"]
    assert "17" in error["message"]


async def test_headers_on_every_answer(client: Client) -> None:
    replies = [
        await client.post(PATH, {"model": "toy", "prompt": "a", "max_tokens": 1}),
        await client.post(PATH, {"model": "toy", "max_tokens": 1, "stream": True}),
        await client.post(PATH, b"{"),
        *[await client.get(path) for path in ("/health", "/v1/models", "/nowhere", "/", "/docs")],
    ]
    ids = set()
    for reply in replies:
        ids.add(reply.headers["x-request-id"])
        assert int(reply.headers["openai-processing-ms"]) >= 0
        assert reply.headers["openai-version"] == "2020-10-01"
    assert len(ids) == len(replies)
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", request_id) for request_id in ids)


async def test_logs_have_no_prompt(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    secret = "the launch code"  # noqa: S105 - made up
    with caplog.at_level(logging.DEBUG):
        await client.complete(prompt=secret, max_tokens=1, user="me", stop=["zq"])
        await client.refuse(prompt=secret, suffix=5)
        await client.post(PATH, secret.encode())
    assert caplog.records
    assert secret not in caplog.text
    record: dict[str, Any] = json.loads(caplog.records[-1].message)
    assert record["status"] == 400


async def test_a_server_that_leaves_is_not_ready_and_answers(serve: Callable[..., Client]) -> None:
    """A load balancer sends it nothing more; what comes is answered."""
    lifecycle = Lifecycle()
    client = serve(toy_engine(), lifecycle=lifecycle)
    ready = await client.get("/ready")
    assert (ready.status, ready.json()["status"]) == (200, "ready")
    lifecycle.leaving = True
    reply = await client.post(PATH, {"model": "toy", "prompt": "a", "max_tokens": 1})
    assert (reply.status, reply.headers["connection"]) == (200, "close")
    assert (await client.get("/health")).status == 200
    ready = await client.get("/ready")
    assert (ready.status, ready.json()["status"]) == (503, "not_ready")


async def test_draining_refuses_new_work(serve: Callable[..., Client]) -> None:
    lifecycle = Lifecycle()
    client = serve(toy_engine(), lifecycle=lifecycle)
    lifecycle.draining = True
    reply = await client.post(PATH, {"model": "toy", "prompt": "a"})
    assert reply.status == 503
    assert reply.headers["connection"] == "close"
    health = await client.get("/health")
    assert health.status == 503
    assert health.json()["status"] == "draining"
    assert (await client.get("/ready")).status == 503
