"""A real vLLM behind the gateway keeps the contract; ``AFTERWORD_VLLM`` is its program."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from afterword.core.limits import Limits
from afterword.gateway.dialects.dialect import Facts
from afterword.gateway.engine import RemoteEngine
from conftest import make_client
from standins.upstreams import engine_of, facts_of
from support import real_servers
from support.asgi import Client, fold
from support.processes import free_port, running
from support.tiny_hf import make_hf, pieces

SERVER = os.environ.get("AFTERWORD_VLLM")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(SERVER is None, reason="AFTERWORD_VLLM names no vLLM"),
]
PROMPT = "def the(é):"


@pytest.fixture(scope="module")
def introspected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Facts]]]:
    port = free_port()
    folder = make_hf(tmp_path_factory.mktemp("tiny"))
    command = [str(SERVER), "serve", str(folder), "--served-model-name", "tiny", "--port",
               str(port), "--load-format", "dummy", "--dtype", "float32", "--max-model-len", "512",
               "--enforce-eager", "--enable-prompt-tokens-details"]  # fmt: skip
    with running(command, port):
        source = f"vllm+http://127.0.0.1:{port}/v1"
        yield source, facts_of(source)


@pytest.fixture
async def engine(introspected: tuple[str, list[Facts]]) -> AsyncIterator[RemoteEngine]:
    made = engine_of(*introspected)
    yield made
    await made.aclose()


@pytest.fixture
def client(engine: RemoteEngine) -> Client:
    return make_client({"toy": engine}, limits=Limits(max_logprobs=20))


def test_its_vocabulary_is_introspected_exactly(introspected: tuple[str, list[Facts]]) -> None:
    (facts,) = introspected[1]
    assert facts.context_tokens == 512
    assert facts.vocabulary is not None
    assert facts.vocabulary.pieces == list(pieces())
    assert facts.vocabulary.end_ids == [256]


async def test_A_E_S_answers_and_streams(client: Client) -> None:
    """Most tokens are parts of characters, because the weights are random."""
    for asked in (
        {"prompt": PROMPT, "temperature": 0, "n": 2},
        {"prompt": [PROMPT, "a"], "n": 3, "seed": 1},
        {"prompt": [[1, 2, 3]], "seed": 2, "logprobs": 3},
        {"prompt": PROMPT, "echo": True, "seed": 3, "stop": ["e", "\n"]},
        {"prompt": PROMPT, "echo": True, "logprobs": 2, "seed": 4},
        {"prompt": PROMPT, "seed": 5, "top_k": 40, "min_p": 0.001, "ignore_eos": True},
        {"prompt": PROMPT, "seed": 6, "presence_penalty": 1, "frequency_penalty": 1},
    ):
        body: dict[str, Any] = {"max_tokens": 24, **asked}
        answer = await client.complete(**body)
        options = {"stream_options": {"include_usage": True}}
        folded = fold(await client.stream(**body, **options), usage=True)
        assert [c["text"] for c in folded["choices"]] == [c["text"] for c in answer["choices"]]
        assert folded["usage"]["completion_tokens"] == answer["usage"]["completion_tokens"]
        for choice in answer["choices"]:
            if choice["logprobs"] is not None:
                assert len({len(column) for column in choice["logprobs"].values()}) == 1


async def test_E_scoring(client: Client) -> None:
    answer = await client.complete(prompt=PROMPT, max_tokens=0, echo=True, logprobs=2)
    (choice,) = answer["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == PROMPT
    assert answer["usage"]["completion_tokens"] == 0
    assert logprobs["token_logprobs"][0] is None
    assert all(value < 0 for value in logprobs["token_logprobs"][1:])
    # Each byte is a token. Both tokens of a character have the offset of the character.
    assert len(logprobs["tokens"]) == len(PROMPT.encode())
    assert logprobs["tokens"][8:10] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs["text_offset"][8:11] == [8, 8, 9]
    one = await client.complete(prompt=PROMPT, max_tokens=1, echo=True, logprobs=0, seed=1)
    assert len(one["choices"][0]["logprobs"]["tokens"]) == len(PROMPT.encode()) + 1


async def test_L_R14_bias_is_not_in_the_values(client: Client) -> None:
    body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": 5}
    plain = await client.complete(**body)
    token = list(pieces()).index(b"a")
    biased = await client.complete(**body, logit_bias={str(token): 100})
    assert biased["choices"][0]["text"] == "a"
    top = plain["choices"][0]["logprobs"]["top_logprobs"][0]
    again = biased["choices"][0]["logprobs"]["top_logprobs"][0]
    for name in top.keys() & again.keys():
        assert again[name] == pytest.approx(top[name], abs=1e-4)


async def test_A6_best_of(client: Client) -> None:
    body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 8, "seed": 9, "ignore_eos": True}
    answer = await client.complete(**body, n=2, best_of=4)
    assert len(answer["choices"]) == 2
    assert answer["usage"]["completion_tokens"] == 32


async def test_R4_H12_limits_of_the_context(client: Client) -> None:
    await real_servers.a_prompt_beyond_the_context_is_refused(client)


async def test_cached_tokens_are_passed_on(client: Client) -> None:
    await real_servers.cached_tokens_are_passed_on(client, prompt_tokens=300)


async def test_S8_a_client_that_leaves(client: Client, engine: RemoteEngine) -> None:
    await real_servers.a_client_that_leaves_stops_it(client, engine)
