"""Afterword as a process in front of other servers: addresses, keys, SIGHUP."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.batching.runner import Batch
from afterword.engine.toy import toy_engine
from conftest import make_client
from e2e.process import run, serving
from e2e.wire import Stream
from standins.upstreams import listening

BODY: dict[str, Any] = {"model": "toy", "prompt": "a", "max_tokens": 9, "logit_bias": {"98": 100}}


class Watched:
    """An app that counts its completions and remembers the keys."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.completions = 0
        self.keys: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        self.keys.add(headers.get(b"authorization", b"").decode())
        self.completions += scope["path"] == "/v1/completions"
        await self._app(scope, receive, send)


class Behind:
    """A toy server behind the one under test. Its engine stops while ``hold`` is clear."""

    def __init__(self, opened: ExitStack) -> None:
        self.hold = threading.Event()
        self.hold.set()
        self.engine: BatchingEngine = toy_engine(before_decode=self._wait)
        self.app = Watched(make_client({"toy": self.engine}).app)
        self.address = f"afterword+{opened.enter_context(listening(self.app))}"

    def _wait(self, _: Batch) -> None:
        self.hold.wait()


@pytest.fixture
def behind() -> Iterator[tuple[Behind, Behind]]:
    with ExitStack() as opened:
        both = Behind(opened), Behind(opened)
        yield both
        for one in both:
            one.hold.set()
    for one in both:
        asyncio.run(one.engine.aclose())


def ask(url: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx2.post(f"{url}/v1/completions", json=BODY, timeout=None).json()
    return answer


def test_several_addresses_and_an_embedded_model(
    tmp_path: Path, behind: tuple[Behind, Behind], tiny_model: Path
) -> None:
    models = [f"toy={one.address}" for one in behind] + [f"tiny={tiny_model}"]
    flags = [part for model in models for part in ("--model", model)]
    with serving(tmp_path / "stderr", *flags, "--threads", "1", "--slots", "1") as server:
        listed = httpx2.get(f"{server.url}/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["toy", "tiny", "gpt-3.5-turbo-instruct"]
        assert listed[0]["afterword"]["upstreams"] == 2
        assert listed[0]["afterword"]["batch_invariant"] is True
        for _ in range(4):
            assert ask(server.url)["choices"][0]["text"] == "b" * 9
        assert [one.app.completions for one in behind] == [2, 2]
        own = httpx2.post(
            f"{server.url}/v1/completions", json={**BODY, "model": "tiny"}, timeout=None
        )
        assert own.status_code == 200


def test_sighup_drains_an_upstream_and_loses_nothing(
    tmp_path: Path, behind: tuple[Behind, Behind]
) -> None:
    old, new = behind
    config = tmp_path / "afterword.toml"
    config.write_text(f'[models]\ntoy = "{old.address}"\n')
    with serving(tmp_path / "stderr", "--config", str(config)) as server:
        old.hold.clear()
        stream = Stream(server.port, BODY)
        while not old.app.completions:
            pass
        config.write_text(f'[models]\ntoy = "{new.address}"\n')
        server.process.send_signal(signal.SIGHUP)
        while not new.app.completions:
            # Until the server has reloaded, a request goes to the old upstream and waits there.
            with suppress(httpx2.TimeoutException):
                httpx2.post(f"{server.url}/v1/completions", json=BODY, timeout=0.2)
        before = old.app.completions
        for _ in range(3):
            assert ask(server.url)["choices"][0]["text"] == "b" * 9
        assert old.app.completions == before
        old.hold.set()
        assert stream.text() == "b" * 9
        stream.close()
        assert server.stop() == 0


def test_a_mistake_in_the_settings_changes_nothing(
    tmp_path: Path, behind: tuple[Behind, Behind]
) -> None:
    config = tmp_path / "afterword.toml"
    config.write_text(f'[models]\ntoy = "{behind[0].address}"\n')
    errors = tmp_path / "stderr"
    with serving(errors, "--config", str(config)) as server:
        elsewhere = f'[models]\ntoy = "{behind[1].address}#nobody-has-it"\n'
        for count, mistake in enumerate(("[models\n", elsewhere), 1):
            config.write_text(mistake)
            server.process.send_signal(signal.SIGHUP)
            while errors.read_text().count("not reloaded") < count:
                pass
            assert ask(server.url)["choices"][0]["text"] == "b" * 9


def test_keys_reach_the_upstream_and_nobody_else(
    tmp_path: Path, behind: tuple[Behind, Behind], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-of-the-upstream"  # noqa: S105 - made up
    monkeypatch.setenv("AFTERWORD_UPSTREAM_KEYS", f"toy={secret}")
    flags = ("--model", f"toy={behind[0].address}", "--log-level", "debug")
    shown = run("serve", *flags, "--print-config")
    assert "***" in shown.stdout
    assert secret not in shown.stdout
    errors = tmp_path / "stderr"
    with serving(errors, *flags) as server:
        ask(server.url)
        for path in ("/v1/models", "/health", "/metrics", "/openapi.json"):
            assert secret not in httpx2.get(f"{server.url}{path}").text
    assert behind[0].app.keys == {f"Bearer {secret}"}
    assert secret not in errors.read_text()


def test_no_flag_takes_a_key() -> None:
    assert run("serve", "--upstream-keys", "toy=sk-x").returncode == 2
    assert "sk-x" not in run("serve", "--help").stdout


def test_nobody_there_is_one_line() -> None:
    done = run("serve", "--model", "m=vllm+http://127.0.0.1:9/v1", "--port", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "afterword: model m: no upstream answers: http://127.0.0.1:9: connection refused"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "vllm+http://h/v1"), "needs a NAME="),
        (("--model", "m=vllm+http://h/v1", "--model", "m=/a.gguf"), "is given twice"),
        (("--model", "m=vllm+http://a/v1", "--model", "m=openai+http://b/v1"), "one dialect"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = run("serve", "--port", "0", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_keys_of_no_model(tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text('[upstream_keys]\nother = "sk-secret"\n')
    done = run("serve", "--config", str(config), "--print-config")
    assert done.returncode == 2
    assert "'other', which is no model" in done.stderr
    assert "sk-secret" not in done.stderr


def test_an_upstream_shown_and_listed(
    behind: tuple[Behind, Behind], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERWORD_MODELS", f"toy={behind[0].address}")
    assert "another server" in run("models", "list").stdout
    shown = run("models", "show", "toy")
    assert shown.returncode == 2
    assert "is another server" in shown.stderr
    diagnosed = run("doctor")
    assert diagnosed.returncode == 0, diagnosed.stderr
    assert "that of the servers behind" in diagnosed.stdout
    assert re.search(r"^context +256 tokens a request$", diagnosed.stdout, re.MULTILINE)
