"""LangChain, LlamaIndex and the client of 2023, each in an environment of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from e2e.environments import run_program
from e2e.process import MODEL, Server
from support.reference import greedy_text

CLIENTS = Path(__file__).parent / "clients"
PROMPT = "Say this is a test"


@pytest.fixture(scope="module")
def expected(embedded_model: Path) -> str:
    return greedy_text(embedded_model, PROMPT, 7)


def got(environment: str, program: str, server: Server) -> Any:
    return json.loads(
        run_program(environment, CLIENTS / program, f"{server.url}/v1", MODEL, PROMPT)
    )


def check_logprobs(logprobs: dict[str, Any], expected: str) -> None:
    assert "".join(logprobs["tokens"]) == expected
    assert all(
        value == max(top.values())
        for value, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    )


def test_langchain(server: Server, expected: str) -> None:
    answers = got("clients", "langchain_openai_llm.py", server)
    assert answers["one"] == answers["batch"][0] == answers["generated"][0] == expected
    assert answers["batch"] == answers["generated"]
    assert "".join(answers["stream"]) == expected
    assert len(answers["stream"]) > 1
    check_logprobs(answers["logprobs"], expected)
    assert answers["usage"]["completion_tokens"] == 7
    assert len(answers["candidates"]) == 2


def test_llama_index(server: Server, expected: str) -> None:
    answers = got("clients", "llama_index_llm.py", server)
    assert answers["one"] == answers["batch"][0] == expected
    assert len(answers["batch"]) == 2
    assert "".join(answers["stream"]) == expected
    assert len(answers["stream"]) > 1
    check_logprobs(answers["logprobs"], expected)


def test_the_client_of_2023(server: Server, expected: str) -> None:
    answers = got("openai-0.28", "openai_0_28.py", server)
    assert answers["one"] == answers["engine"] == answers["azure"] == expected
    assert "".join(answers["stream"]) == expected
    assert MODEL in answers["models"]
    assert answers["engines"] == answers["models"]
    assert answers["refusal"] == {"param": "best_of", "status": 400}
