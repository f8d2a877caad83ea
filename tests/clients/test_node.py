"""Clients for Node say what the server says over plain HTTP."""

from __future__ import annotations

import pytest

from clients.conftest import CODER
from clients.running import PROMPT, Plain, run_node, texts
from e2e.process import MODEL, Server


def test_langchain(server: Server, plain: Plain) -> None:
    got = run_node("@langchain/openai", "langchain.mjs", f"{server.url}/v1", MODEL, PROMPT)
    assert got["one"] == got["batch"][0] == "".join(got["stream"]) == plain.text()
    assert got["batch"][1] == plain.text("Once")
    assert len(got["stream"]) > 1
    assert got["usage"]["completionTokens"] == 14
    chosen = plain.complete(prompt=PROMPT, max_tokens=7, n=2, best_of=3, seed=5)
    assert got["chosen"] == texts(chosen)


def test_vercel(server: Server, plain: Plain) -> None:
    got = run_node(
        "@ai-sdk/openai-compatible", "vercel.mjs", f"{server.url}/v1", MODEL, PROMPT
    )  # fmt: skip
    # The SDK writes a conversation, and ends it where a user's next line would begin.
    asked = f"user:\n{PROMPT}\n\nassistant:\n"
    body = {"prompt": asked, "stop": ["\nuser:"], "max_tokens": 7, "temperature": 0}
    answer = plain.complete(**body)
    assert got["text"] == "".join(got["parts"]) == texts(answer)[0]
    assert got["finish"] == answer["choices"][0]["finish_reason"]
    for usage in (got["usage"], got["streamUsage"]):
        assert usage["inputTokens"] == answer["usage"]["prompt_tokens"]
        assert usage["outputTokens"] == answer["usage"]["completion_tokens"]
    assert got["biased"] == texts(plain.complete(**body, logit_bias={"28": 100}))[0]
    assert got["biased"] != got["text"]


@pytest.mark.parametrize("provider", ["openai", "vllm", "llama.cpp", "lmstudio"])
def test_continue(server: Server, plain: Plain, provider: str) -> None:
    prompt, suffix = "def f():\n    return ", "\n"
    arguments = (f"{server.url}/v1", MODEL, CODER, prompt, suffix, provider)
    got = run_node("@continuedev/openai-adapters", "continue.mjs", *arguments)
    assert got["text"] == "".join(got["parts"]) == plain.text(prompt)
    infill = {"model": CODER, "suffix": suffix, "max_tokens": 6, "stop": ["```"]}
    assert "".join(got["infill"]) == plain.text(prompt, **infill)
    assert got["infill"]
    assert {MODEL, CODER} <= set(got["models"])
