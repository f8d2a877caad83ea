"""A server that is at a limit and says when to come back is waited for, by those who want it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from starlette.types import ASGIApp, Receive, Scope, Send

from afterword import LLM, ApiError, EngineOverloaded
from afterword.cli import cli
from afterword.engine.toy import toy_engine
from afterword.http.app import create_app
from afterword.http.lifecycle import Lifecycle
from afterword.library.patience import Patience
from afterword.library.remote import connecting
from standins.upstreams import listening
from support.library import service_of

BUSY = (429, "rate_limit_exceeded"), (503, "engine_overloaded")


class Time:
    """A clock that stands still but for its sleepers."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


class Refusing:
    """Refuses the next POSTs, one for each entry of ``left``, before the server sees them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.left: list[tuple[int, str, bytes | None]] = []
        self.passing = ""
        """The path that is not refused."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        if not (is_post and self.left) or scope["path"] == self.passing:
            await self._app(scope, receive, send)
            return
        status, code, after = self.left.pop(0)
        error = {"message": f"Wait {after!r}.", "type": code, "param": None, "code": code}
        headers = [(b"content-type", b"application/json")]
        headers += [] if after is None else [(b"retry-after", after)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        body = json.dumps({"error": error}).encode()
        await send({"type": "http.response.body", "body": body})


@contextmanager
def refusing() -> Iterator[tuple[Refusing, str]]:
    """A server of a toy model, and its address."""
    app = create_app(
        service_of(toy_engine()),
        lifecycle=Lifecycle(),
        clock=lambda: 0.0,
        entropy=os.urandom,
    )
    guard = Refusing(app)
    with listening(guard) as base:
        yield guard, base


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Refusing, str]]:
    with refusing() as both:
        yield both


def opened(url: str, time: Time, told: list[ApiError]) -> LLM:
    patience = partial(Patience, 600, told=told.append, clock=time.clock, sleep=time.sleep)
    return LLM.opened_by(
        connecting(url, key=None, model=None, timeout_s=60, patience=patience)
    )  # fmt: skip


@pytest.mark.parametrize(("status", "code"), BUSY)
def test_a_busy_server_is_asked_again_when_it_says(
    guarded: tuple[Refusing, str], status: int, code: str
) -> None:
    guard, url = guarded
    time, told = Time(), list[ApiError]()
    with opened(url, time, told) as llm:
        wanted = llm.score("a b")
        # The route that counts tokens is refused like the one that completes; 0 is a second.
        guard.left = [(status, code, after) for after in (b"7", b"0", b"40")]
        assert llm.score("a b") == wanted
    assert guard.left == []
    assert time.slept == [7, 1, 40]
    assert [error.retry_after_s for error in told] == [7, 0, 40]
    assert {error.code for error in told} == {code}


@pytest.mark.parametrize("after", [None, b"soon", b"601", b"-1", b"1.5", b"9" * 400])
def test_what_says_no_time_or_too_long_is_an_error(
    guarded: tuple[Refusing, str], after: bytes | None
) -> None:
    guard, url = guarded
    time, told = Time(), list[ApiError]()
    with opened(url, time, told) as llm:
        guard.left = [(503, "engine_overloaded", after)]
        with pytest.raises(EngineOverloaded):
            llm.complete("a", max_tokens=1)
    assert (guard.left, time.slept, told) == ([], [], [])


def test_patience_ends_where_nothing_is_answered(guarded: tuple[Refusing, str]) -> None:
    """An answer to any request begins it anew."""
    guard, url = guarded
    time, told = Time(), list[ApiError]()
    with opened(url, time, told) as llm:
        for _ in range(2):
            guard.left = [(503, "engine_overloaded", b"200")] * 3
            llm.tokenize("a")
        guard.left = [(503, "engine_overloaded", b"200")] * 4
        with pytest.raises(EngineOverloaded) as refused:
            llm.tokenize("a")
    assert refused.value.retry_after_s == 200
    assert time.slept == [200] * 9


def test_more_tokens_than_a_key_may_have_are_asked_in_parts(guarded: tuple[Refusing, str]) -> None:
    """A request larger than the limit never fits; one that only comes too early does."""
    guard, url = guarded
    texts = ["a", "b", "c", "d"]
    with LLM.connect(url) as llm:
        wanted = llm.score_continuations("Once", texts)
        guard.passing = "/tokenize"
        # All four, then two of them.
        guard.left = [(429, "rate_limit_exceeded", None)] * 2
        assert llm.score_continuations("Once", texts) == wanted
        assert guard.left == []
        guard.left = [(429, "rate_limit_exceeded", b"5")] * 2
        with pytest.raises(ApiError, match="Wait"):
            llm.score_continuations("Once", texts)
        assert len(guard.left) == 1
    guard.left, guard.passing = [], ""


def test_a_program_is_told_at_once(guarded: tuple[Refusing, str]) -> None:
    """It may wait itself: the error says how long."""
    guard, url = guarded
    with LLM.connect(url) as llm:
        for ask in (lambda: llm.complete("a"), lambda: llm.stream("a")):
            guard.left = [(503, "engine_overloaded", b"3")]
            with pytest.raises(EngineOverloaded) as refused:
                ask()
            assert refused.value.retry_after_s == 3


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.mark.parametrize("words", [("score", "a b", "--json"), ("eval", "TASK", "--json")])
def test_scores_and_evaluations_wait(
    guarded: tuple[Refusing, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: Sequence[str],
) -> None:
    guard, url = guarded
    time = Time()
    monkeypatch.setattr("afterword.cli.served.Patience", partial(Patience, sleep=time.sleep))
    task = tmp_path / "task.jsonl"
    items = [{"context": f"Once {i}", "choices": [" a", " b"], "label": 0} for i in range(4)]
    task.write_text("".join(json.dumps(item) + "\n" for item in items))
    command = [str(task) if word == "TASK" else word for word in words]
    found = []
    for times in (0, 3):
        folder = tmp_path / str(times)
        folder.mkdir()
        more = ("--state", folder) if words[0] == "eval" else ()
        guard.left = [(429, "rate_limit_exceeded", b"5")] * times
        done = run(*command, "--url", url, *more)
        assert done.exit_code == 0
        found.append(done)
    free, limited = found
    assert limited.stdout == free.stdout
    assert time.slept == [5, 5, 5]
    assert limited.stderr.count("waiting, as the server says: Wait b'5'.") == 1
    assert "waiting" not in free.stderr


def test_complete_does_not_wait(guarded: tuple[Refusing, str]) -> None:
    guard, url = guarded
    guard.left = [(429, "rate_limit_exceeded", b"5")]
    done = run("complete", "a", "--url", url)
    assert isinstance(done.exception, ApiError)
    assert done.exception.retry_after_s == 5
