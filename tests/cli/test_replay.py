"""``afterword replay`` against a server in this process, and the comparison of shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from afterword.cli.answer_shape import differences, folded
from afterword.cli.models import models
from afterword.cli.replay import replay
from afterword.core.errors import ConfigError
from afterword.engine.toy import toy_engine
from afterword.models.recommended import RECOMMENDED
from conftest import make_client
from standins.upstreams import listening

REQUEST = {"model": "toy", "prompt": "Once", "max_tokens": 3, "temperature": 0}
ANSWER: dict[str, Any] = {
    "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "gpt-3.5-turbo-instruct",
    "choices": [{"text": "x", "index": 0, "logprobs": None, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip


def run(file: Path, *lines: dict[str, Any]) -> tuple[int, list[str]]:
    file.write_text("\n".join(map(json.dumps, lines)))
    with listening(make_client({"toy": toy_engine()}).app) as base:
        done = CliRunner().invoke(replay, [str(file), "--url", base])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output.splitlines()


def test_what_differs_in_shape_is_said(tmp_path: Path) -> None:
    status, lines = run(
        tmp_path / "requests.jsonl",
        REQUEST,
        {"request": REQUEST, "response": ANSWER},
        {"request": {**REQUEST, "logprobs": 1}, "response": ANSWER},
        {"request": {**REQUEST, "best_of": -1}, "response": ANSWER},
        {"request": {**REQUEST, "best_of": -1}, "response": {"error": {"message": "no"}}},
    )
    assert status == 1
    assert "new here, in 2 answers: answer.system_fingerprint" in lines
    assert not any(line.startswith("line 2:") for line in lines)
    assert lines[-1] == "5 requests, 3 as recorded, 2 not"
    assert "line 3: answer.choices[].logprobs: null was recorded, here it is an object" in lines
    assert any(line.startswith("line 4: refused with 400: ") for line in lines)
    assert not any(line.startswith("line 1:") for line in lines)


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e10", "0", "-1", "x"])
def test_a_time_that_nobody_can_wait_is_refused(tmp_path: Path, seconds: str) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps(REQUEST))
    done = CliRunner().invoke(replay, [str(file), "--timeout", seconds])
    assert done.exit_code == 2
    assert "Invalid value for '--timeout'" in done.output


def test_what_is_alike_exits_with_0(tmp_path: Path) -> None:
    chunk = {**ANSWER, "system_fingerprint": "fp_1"}
    del chunk["usage"]
    status, lines = run(
        tmp_path / "requests.jsonl",
        REQUEST,
        {"request": {**REQUEST, "stream": True}, "response": [chunk, chunk]},
    )
    assert lines == ["2 requests, 2 as recorded, 0 not"]
    assert status == 0


def test_what_openai_answered_is_as_recorded(tmp_path: Path) -> None:
    """Keys that it did not send make no answer different; one that it sent has to be there."""
    status, lines = run(tmp_path / "requests.jsonl", {"request": REQUEST, "response": ANSWER})
    assert status == 0
    assert lines == [
        "new here, in 1 answer: answer.usage.prompt_tokens_details",
        "new here, in 1 answer: answer.system_fingerprint",
        "1 request, 1 as recorded, 0 not",
    ]
    more = {**ANSWER, "warning": "x"}
    status, lines = run(tmp_path / "requests.jsonl", {"request": REQUEST, "response": more})
    assert "line 1: answer.warning: was recorded, here it is missing" in lines
    assert status == 1


def test_how_a_stream_is_divided_changes_no_shape() -> None:
    def chunk(text: str, reason: str | None) -> dict[str, Any]:
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": reason}
        return {"id": "cmpl-1", "choices": [choice]}

    usage = {"id": "cmpl-1", "choices": [], "usage": {"total_tokens": 3}}
    several = folded([chunk("a", None), chunk("b", None), chunk("c", "length"), usage, "[DONE]"])
    assert several["usage"] == {"total_tokens": 3}
    assert not list(differences(folded([chunk("abc", "length"), usage]), several))
    assert folded([]) == {"chunk": {}, "usage": None}


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        '{"prompt": %s}' % ("[" * 10**5 + "]" * 10**5),
        '{"prompt": "a", "max_tokens": 1, "max_tokens": 2}',
        '{"request": {"logit_bias": {"5": 1, "5": 2}}}',
        '{"request": {"prompt": "a"}, "request": {"prompt": "b"}}',
        '{"request": {"prompt": "a"}, "path": "v1/completions"}',
        '{"request": {"prompt": "a"}, "path": "/v1/\\u00e9"}',
        '{"request": {"prompt": "a"}, "path": "/v1 x"}',
        '{"request": {"prompt": "a"}, "path": ""}',
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n{line}\n')
    with listening(make_client({"toy": toy_engine()}).app) as base:
        done = CliRunner().invoke(replay, [str(file), "--url", base])
    assert isinstance(done.exception, ConfigError)
    assert "line 2" in str(done.exception)
    # Nothing was sent.
    assert done.output == ""


def test_a_recorded_answer_may_have_a_name_twice(tmp_path: Path) -> None:
    """As ``top_logprobs`` of some servers, where two tokens have one spelling."""
    file = tmp_path / "requests.jsonl"
    file.write_text(f'{{"request": {json.dumps(REQUEST)}, "response": {{"id": "a", "id": "b"}}}}')
    with listening(make_client({"toy": toy_engine()}).app) as base:
        done = CliRunner().invoke(replay, [str(file), "--url", base])
    assert done.exit_code == 0
    assert "1 request, 1 as recorded, 0 not" in done.output


def test_a_key_that_cannot_be_sent_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps(REQUEST))
    monkeypatch.setenv("AFTERWORD_KEY", "sk-secret\r")
    done = CliRunner().invoke(replay, [str(file), "--url", "http://127.0.0.1:1"])
    assert isinstance(done.exception, ConfigError)
    assert "a key has" in str(done.exception)
    assert "secret" not in str(done.exception) + done.output


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1",
        "http://127.0.0.1:99999",
        "http://[::1",
        "http://:80",
        "http://a..b",
        "http://127.0.0.1/?a=b",
    ],
)
def test_what_is_no_address_is_named(tmp_path: Path, url: str) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps(REQUEST))
    done = CliRunner().invoke(replay, [str(file), "--url", url])
    assert isinstance(done.exception, ConfigError)
    assert url in str(done.exception)


def test_a_file_without_requests_is_no_success(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text("\n\n")
    done = CliRunner().invoke(replay, [str(file), "--url", "http://127.0.0.1:1"])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception) == f"{file}: has no requests"


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    """JSON may have other ends of lines inside strings, and files may begin with a mark."""
    file = tmp_path / "requests.jsonl"
    lines = [json.dumps({**REQUEST, "prompt": "a\u2028b\x85"}, ensure_ascii=False), ""]
    file.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    with listening(make_client({"toy": toy_engine()}).app) as base:
        done = CliRunner().invoke(replay, [str(file), "--url", base])
    assert done.output == "1 request, 1 as recorded, 0 not\n"
    file.write_bytes(b"\xff")
    assert isinstance(CliRunner().invoke(replay, [str(file)]).exception, ConfigError)


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("text/event-stream", b'data: {"choices": []}\n\ndata: {"error": {"message": "no"}}\n\n',
         "broke off: no"),
        ("application/json", b'{"error": "in one word"}', "broke off: in one word"),
        ("application/json", b'{"error": {}}', "broke off: no message"),
        ("application/json", b'{"error": "\\u001b[2J"}', "broke off: \ufffd[2J"),
        ("application/json", b"[" * 10**5 + b"]" * 10**5, None),
        ("text/event-stream", b'data: {"choices": []}\r\n\r\ndata: [DONE]\r\n\r\n', None),
        ("text/event-stream", b'data:{"error": {"message": "no"}}\n\n', "broke off: no"),
        ("text/event-stream", b'data: {"choices": []}\n\ndata: {"choi', None),
    ],
)  # fmt: skip
def test_an_answer_that_is_an_error_is_said(
    tmp_path: Path, kind: str, body: bytes, said: str | None
) -> None:
    async def answer(_: Request) -> Response:
        return Response(body, media_type=kind)

    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps(REQUEST))
    app = Starlette(routes=[Route("/v1/completions", answer, methods=["POST"])])
    with listening(app) as base:
        done = CliRunner().invoke(replay, [str(file), "--url", base])
    assert done.output.splitlines()[-1].startswith("1 request, ")
    assert done.output.splitlines()[:-1] == ([] if said is None else [f"line 1: {said}"])


@pytest.mark.parametrize(
    ("recorded", "here", "lines"),
    [
        ({"a": 1}, {"a": 2.5}, []),
        ({"a": 1}, {"a": "x"}, ["answer.a: a number was recorded, here it is a string"]),
        ({"a": 1}, {}, ["answer.a: was recorded, here it is missing"]),
        ({"a": [None, {"b": 1}]}, {"a": [{"b": True}]},
         ["answer.a[].b: a number was recorded, here it is a boolean"]),
        ({"top_logprobs": [{" a": -1.0}]}, {"top_logprobs": [{" b": -2.0}]}, []),
        ({"a": []}, {"a": [1]}, []),
    ],
)  # fmt: skip
def test_differences(recorded: Any, here: Any, lines: list[str]) -> None:
    assert list(map(str, differences(recorded, here))) == lines


def test_models_are_recommended_by_use_and_memory() -> None:
    small = CliRunner().invoke(models, ["recommend", "--memory", "1"])
    assert "smollm2-135m-instruct" in small.output
    assert "7B" not in small.output
    code = CliRunner().invoke(models, ["recommend", "--for", "code", "--memory", "99"])
    assert "Coder" in code.output
    assert "gemma" not in code.output
    # Each source can be copied, and what was not tried says so.
    whole = CliRunner().invoke(models, ["recommend", "--memory", "99"]).output
    for model in RECOMMENDED:
        assert model.source in whole.splitlines()
        assert model.measured != ("not tried" in model.known)
    none = CliRunner().invoke(models, ["recommend", "--memory", "0.1"])
    assert isinstance(none.exception, ConfigError)
    # The embedded model would fit, and is not for code.
    none = CliRunner().invoke(models, ["recommend", "--for", "code", "--memory", "0.95"])
    assert str(none.exception) == "no model for code that is known here takes at most 0.95 GiB"
