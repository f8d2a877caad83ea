"""Frameworks and command lines for Python say what the server says over plain HTTP."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from clients.installing import python_client
from clients.running import PROMPT, QUIET, Plain, run_client, run_python, texts
from e2e.process import MODEL, Server
from support.processes import free_port, running


def test_litellm(server: Server, plain: Plain, tmp_path: Path) -> None:
    got = run_python("litellm", "litellm_text.py", tmp_path, f"{server.url}/v1", MODEL, PROMPT)
    answer = plain.complete(prompt=PROMPT, max_tokens=7, temperature=0, logprobs=2)
    (choice,) = answer["choices"]
    assert got["one"] == "".join(got["stream"]) == "".join(got["later"]) == choice["text"]
    assert got["logprobs"] == choice["logprobs"]
    assert got["usage"] == answer["usage"]["completion_tokens"]
    assert got["batch"] == [choice["text"], plain.text("Once")]
    chosen = plain.complete(prompt=PROMPT, max_tokens=7, n=2, best_of=3, seed=5)
    assert got["chosen"] == texts(chosen)
    assert len(set(got["chosen"])) == 2


def test_litellm_proxy(
    server: Server, plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"model": f"text-completion-openai/{MODEL}", "api_base": f"{server.url}/v1"}
    served = {"model_name": MODEL, "litellm_params": {**given, "api_key": "unused"}}
    config = tmp_path / "config.yaml"
    # The proxy does not start without a key of some length.
    key = f"sk-{'0123456789abcdef' * 3}"
    settings = {"model_list": [served], "general_settings": {"master_key": key}}
    config.write_text(json.dumps(settings))
    port = free_port()
    for name, value in {**QUIET, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    command = [str(python_client("litellm") / "litellm"), "--config", str(config),
               "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    bodies: list[dict[str, Any]] = [
        {"max_tokens": 7, "temperature": 0, "logprobs": 2, "stop": ["x"]},
        {"max_tokens": 7, "seed": 5, "n": 2, "top_k": 40, "repetition_penalty": 1.2},
        {"max_tokens": 0, "echo": True, "logprobs": 1},
    ]
    with running(command, port, ready="/health/liveliness", wait_s=600):
        proxy = Plain(f"http://127.0.0.1:{port}", key)
        for body in bodies:
            got = proxy.complete(prompt=PROMPT, **body)
            wanted = plain.complete(prompt=PROMPT, **body)
            assert texts(got) == texts(wanted)
            for one, other in zip(got["choices"], wanted["choices"], strict=True):
                assert one["finish_reason"] == other["finish_reason"]
                assert one["logprobs"] == other["logprobs"]
            assert got["usage"]["total_tokens"] == wanted["usage"]["total_tokens"]
        streamed = list(proxy.chunks(prompt=PROMPT, max_tokens=7, temperature=0, logprobs=2))
        assert "".join(choice.get("text") or "" for choice in streamed) == plain.text()
        # The proxy's own streams leave them out; the server's have them.
        assert not any(choice.get("logprobs") for choice in streamed)


def test_dspy(server: Server, plain: Plain, tmp_path: Path) -> None:
    got = run_python("dspy", "dspy_text.py", tmp_path, f"{server.url}/v1", MODEL, PROMPT)
    assert got["texts"] == [plain.text(f"{PROMPT}\n\nBEGIN RESPONSE:", max_tokens=40)]
    assert got["said"]
    assert got["usage"]["completion_tokens"] > 0


def test_guidance(server: Server, plain: Plain, tmp_path: Path) -> None:
    """It reads a stream as far as it needs, and parses the text itself."""
    row = "1, 2, 3, 4, "
    got = run_python("guidance", "guidance_text.py", tmp_path, f"{server.url}/v1", PROMPT, row)
    whole = plain.text(max_tokens=60)
    # Its tokens are bytes here.
    assert got["cut"] == whole[:20]
    assert got["stopped"] == whole.partition(".")[0] != whole
    (number,) = re.findall(r"^[0-9]+", plain.text(row, max_tokens=60))
    assert got["number"] == number


def test_semantic_kernel(server: Server, plain: Plain, tmp_path: Path) -> None:
    url = f"{server.url}/v1"
    got = run_python("semantic-kernel", "semantic_kernel_text.py", tmp_path, url, MODEL, PROMPT)
    assert got["one"] == "".join(got["stream"]) == plain.text()
    assert len(got["stream"]) > 1
    assert got["usage"] == 7
    body = {"max_tokens": 7, "seed": 5, "n": 2, "best_of": 3, "logprobs": 2}
    assert got["chosen"] == texts(plain.complete(prompt=PROMPT, **body))


def test_llm(server: Server, plain: Plain, tmp_path: Path) -> None:
    """The command of simonw/llm: streamed, whole, with log-probabilities in its log."""
    extra = {"model_id": "afterword", "model_name": MODEL, "api_base": f"{server.url}/v1",
             "completion": True}  # fmt: skip
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([extra]))
    program = python_client("llm") / "llm"
    options = ("-m", "afterword", "-o", "temperature", "0", "-o", "max_tokens", "7")

    def say(*arguments: str) -> str:
        done = run_client([program, *arguments, *options], tmp_path, LLM_USER_PATH=str(tmp_path))
        return done.stdout.rstrip("\n")

    expected = plain.text().rstrip("\n")
    assert say(PROMPT, "-o", "logprobs", "2") == expected
    assert say(PROMPT, "--no-stream") == expected
