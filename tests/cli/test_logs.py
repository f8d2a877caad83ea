"""The log: lines for a terminal or JSON for programs, of libraries too, and never a secret."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from afterword import cli
from afterword.cli.logs import JsonLines, LogFormat, LogTerminal, is_json, open_log, ready_line
from afterword.cli.terminal import Terminal
from afterword.http.middleware import AccessRecord

Lines = Callable[[], list[dict[str, Any]]]
SECRET = "sk-af-0123456789abcdefghijklmnopqrstuvwxyz"  # noqa: S105 - made up


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[LogFormat], io.StringIO]]:
    """Opens a log on a text of its own, and gives logging back as it was."""
    root, ours = logging.getLogger(), logging.getLogger("afterword")
    before = (root.level, list(root.handlers), ours.level)
    text = io.StringIO()

    def make(log_format: LogFormat) -> io.StringIO:
        monkeypatch.setattr(sys, "stderr", text)
        root.handlers.clear()
        open_log("info", log_format)
        return text

    yield make
    logging.captureWarnings(capture=False)
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    ours.setLevel(before[2])


def fail(prompt: str) -> None:
    raise ValueError(prompt)


def log_everything() -> None:
    logging.getLogger("afterword.x").info("ours %s", "é\u2028\ud800\n")
    logging.getLogger("afterword.x").debug("not this")
    logging.getLogger("some.library").warning("theirs")
    logging.getLogger("some.library").info("not this")
    logging.getLogger("some.library").warning("%d", "no number")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("python's", stacklevel=1)
    logging.getLogger("some.library").warning("with %s", SECRET)
    try:
        fail("a prompt")
    except ValueError:
        logging.getLogger("asyncio").exception("it failed")


def test_every_line_is_json(opened: Callable[[LogFormat], io.StringIO]) -> None:
    text = opened("json")
    assert is_json()
    log_everything()
    terminal = LogTerminal()
    terminal.say("WARNING: no-auth: everybody")
    terminal.say("loading")
    with terminal.progress("fetching", 100) as advance:
        advance(60)
    lines = [json.loads(line) for line in text.getvalue().split("\n")[:-1]]
    assert text.getvalue().isascii()
    said = [(line["level"], line["logger"], line["message"]) for line in lines]
    assert said[0] == ("info", "afterword.x", "ours é\u2028\ud800\n")
    assert said[1] == ("warning", "some.library", "theirs")
    assert said[2] == ("warning", "some.library", "%d")
    assert said[3][:2] == ("warning", "py.warnings")
    assert "python's" in said[3][2]
    assert said[4] == ("warning", "some.library", "with ***")
    assert said[5] == ("error", "asyncio", "it failed")
    assert [fault["type"] for fault in lines[5]["faults"]] == ["ValueError"]
    assert said[6:8] == [
        ("warning", "afterword.start", "no-auth: everybody"),
        ("info", "afterword.start", "loading"),
    ]  # fmt: skip
    assert said[8] == ("info", "afterword.start", "fetching: 50%")
    assert all(line["time"].endswith("+00:00") for line in lines)
    assert "a prompt" not in text.getvalue()
    assert SECRET[8:20] not in text.getvalue()


def test_text_for_a_terminal(opened: Callable[[LogFormat], io.StringIO]) -> None:
    text = opened("text")
    assert not is_json()
    log_everything()
    assert "WARNING some.library theirs" in text.getvalue()
    assert "ERROR asyncio it failed" in text.getvalue()
    assert "test_logs.fail" in text.getvalue()
    assert "a prompt" not in text.getvalue()
    assert SECRET[8:20] not in text.getvalue()


def test_a_terminal_obeys_no_text_of_a_client(
    opened: Callable[[LogFormat], io.StringIO],
) -> None:
    """JSON leaves controls above ASCII and ends of lines as they are."""
    text = opened("text")
    logging.getLogger("afterword.access").info("%s", '{"path":"/\x9b31m\x85\u2028\u202eé入"}')
    (line,) = text.getvalue().splitlines()
    assert line.endswith(r'{"path":"/\x9b31m\x85\u2028\u202eé入"}')


def test_a_requests_fields_stand_in_its_line(
    opened: Callable[[LogFormat], io.StringIO],
) -> None:
    text = opened("json")
    record = AccessRecord(
        request_id="req_1", method="POST", path="/v1/completions", route="/v1/completions",
        status=429, outcome="refused", duration_ms=1.5, model="toy", key="key-1", key_name="alice",
        client="192.0.2.7", code="insufficient_quota", limit="budget",
    )  # fmt: skip
    logging.getLogger("afterword.access").info("%s", "{}", extra={"fields": record})
    (line,) = [json.loads(one) for one in text.getvalue().splitlines()]
    assert line["message"] == "request"
    names = ("model", "key", "key_name", "client", "code", "limit")
    assert {name: line[name] for name in names} == {
        "model": "toy", "key": "key-1", "key_name": "alice", "client": "192.0.2.7",
        "code": "insufficient_quota", "limit": "budget",
    }  # fmt: skip


def test_the_end_of_a_start_is_json_too(opened: Callable[[LogFormat], io.StringIO]) -> None:
    text = opened("json")
    with pytest.raises(SystemExit):
        cli._fail("the port\nis taken", 2)
    line = json.loads(text.getvalue())
    assert (line["level"], line["message"]) == ("critical", "the port is taken")
    ready = json.loads(ready_line({"url": "http://x", "models": ["a"]}))
    assert (ready["message"], ready["url"]) == ("Afterword is ready", "http://x")


def test_what_a_start_writes_to() -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    assert isinstance(LogTerminal(), Terminal)
    assert root.handlers == before
    assert JsonLines().format(logging.LogRecord("x", 30, "", 1, "a", (), None)).startswith("{")
