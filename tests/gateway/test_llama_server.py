"""A real llama-server behind the gateway keeps the contract.

``AFTERWORD_LLAMA_SERVER`` is the path of its program; else it is looked up on the PATH.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from afterword.core.limits import Limits
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.vocab import LlamaTokenizer
from afterword.gateway.dialects.dialect import Facts
from afterword.gateway.engine import RemoteEngine
from conftest import make_client
from standins.upstreams import engine_of, facts_of
from support import real_servers
from support.asgi import Client, fold
from support.processes import free_port, running
from support.tiny_gguf import make_gguf

SERVER = os.environ.get("AFTERWORD_LLAMA_SERVER") or shutil.which("llama-server")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        SERVER is None, reason="no llama-server: neither AFTERWORD_LLAMA_SERVER nor on the PATH"
    ),
]
PROMPT = "def the(a):"


def source_of(port: int) -> str:
    return f"llamacpp+http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "qwen")


@pytest.fixture(scope="module")
def introspected(tiny: Path) -> Iterator[tuple[str, list[Facts]]]:
    port = free_port()
    command = [str(SERVER), "-m", str(tiny), "--port", str(port), "-c", "2048", "-np", "4",
               "-t", "1"]  # fmt: skip
    with running(command, port):
        yield source_of(port), facts_of(source_of(port))


@pytest.fixture
async def engine(introspected: tuple[str, list[Facts]]) -> AsyncIterator[RemoteEngine]:
    made = engine_of(*introspected)
    yield made
    await made.aclose()


@pytest.fixture
def client(engine: RemoteEngine) -> Client:
    return make_client({"toy": engine}, limits=Limits(max_logprobs=20))


def spelled(model: Path) -> LlamaTokenizer:
    return LlamaTokenizer(LlamaModel(model))


def test_its_vocabulary_is_introspected_exactly(
    introspected: tuple[str, list[Facts]], tiny: Path
) -> None:
    table, tokenizer = introspected[1][0].vocabulary, spelled(tiny)
    assert table is not None
    assert table.pieces == list(tokenizer.pieces)
    assert set(table.end_ids) <= tokenizer.end_ids
    assert table.bos_id == tokenizer.bos_id
    assert table.document_start_id == tokenizer.document_start_id
    assert table.infill == tokenizer.infill


@pytest.mark.model
def test_a_real_vocabulary_is_introspected_exactly(embedded_model: Path) -> None:
    port = free_port()
    command = [str(SERVER), "-m", str(embedded_model), "--port", str(port), "-c", "256"]
    with running(command, port):
        (facts,) = facts_of(source_of(port))
    assert facts.vocabulary is not None
    assert facts.vocabulary.pieces == list(spelled(embedded_model).pieces)
    assert "/" not in facts.model


async def test_A_E_S_answers_and_streams(client: Client) -> None:
    """Most tokens are parts of characters, because the weights are random."""
    for asked in (
        {"prompt": PROMPT, "temperature": 0},
        {"prompt": [PROMPT, "a"], "n": 3, "seed": 1},
        {"prompt": [[1, 2, 3]], "seed": 2, "logprobs": 3},
        {"prompt": PROMPT, "echo": True, "seed": 3, "stop": ["e", "\n"]},
        {"prompt": PROMPT, "seed": 4, "n": 2, "logprobs": 0, "temperature": 1.5},
    ):
        body: dict[str, Any] = {"max_tokens": 40, **asked}
        answer = await client.complete(**body)
        options = {"stream_options": {"include_usage": True}}
        folded = fold(await client.stream(**body, **options), usage=True)
        assert [c["text"] for c in folded["choices"]] == [c["text"] for c in answer["choices"]]
        assert folded["usage"]["completion_tokens"] == answer["usage"]["completion_tokens"]
        for choice in answer["choices"]:
            choice["text"].encode()
            if choice["logprobs"] is not None:
                lengths = {len(column) for column in choice["logprobs"].values()}
                assert len(lengths) == 1


async def test_A5_every_token_is_counted(client: Client) -> None:
    """Tokens that end inside a character count too, although the server does not report them."""
    answer = await client.complete(prompt=PROMPT, max_tokens=60, n=3, seed=5, logprobs=0,
                                   logit_bias={"265": -100, "266": -100})  # fmt: skip
    assert answer["usage"]["prompt_tokens"] == len(
        (await client.post("/tokenize", {"prompt": PROMPT})).json()["tokens"]
    )
    made = [len(choice["logprobs"]["tokens"]) for choice in answer["choices"]]
    assert sum(made) == answer["usage"]["completion_tokens"]
    for choice in answer["choices"]:
        if choice["finish_reason"] == "length":
            assert len(choice["logprobs"]["tokens"]) == 60


async def test_L_values_are_of_the_raw_distribution(client: Client) -> None:
    plain = await client.complete(prompt=PROMPT, max_tokens=1, temperature=0, logprobs=5)
    top = plain["choices"][0]["logprobs"]["top_logprobs"][0]
    assert len(top) == 5
    assert max(top.values()) == plain["choices"][0]["logprobs"]["token_logprobs"][0]
    biased = await client.complete(prompt=PROMPT, max_tokens=1, temperature=0, logprobs=5,
                                   logit_bias={"97": 100})  # fmt: skip
    assert biased["choices"][0]["text"] == "a"
    again = biased["choices"][0]["logprobs"]["top_logprobs"][0]
    for token, value in top.items():
        assert again[token] == pytest.approx(value, abs=1e-4)


async def test_A6_best_of(client: Client) -> None:
    body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 8, "seed": 9}
    everyone = await client.complete(**body, n=4, logprobs=0)
    means = {
        choice["text"]: sum(choice["logprobs"]["token_logprobs"])
        / len(choice["logprobs"]["token_logprobs"])
        for choice in everyone["choices"]
    }
    best = await client.complete(**body, n=1, best_of=4)
    assert best["choices"][0]["text"] in means
    assert best["usage"]["completion_tokens"] == everyone["usage"]["completion_tokens"]


async def test_F_infill(client: Client, tiny: Path) -> None:
    filled = await client.complete(prompt="ab", suffix="cd", max_tokens=9, temperature=0)
    infill = spelled(tiny).infill
    assert infill is not None
    tokenizer = spelled(tiny)
    by_hand = [infill.prefix_id, *tokenizer.encode("ab"), infill.suffix_id,
               *tokenizer.encode("cd"), infill.middle_id]  # fmt: skip
    assert filled["usage"]["prompt_tokens"] == len(by_hand)
    direct = await client.complete(prompt=by_hand, max_tokens=9, temperature=0)
    assert direct["choices"][0]["text"] == filled["choices"][0]["text"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"frequency_penalty": 1}, "presence_penalty"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"typical_p": 0.5, "min_p": 0.1}, "typical_p"),
        ({"dry_multiplier": 1, "dry_sequence_breakers": []}, "dry_sequence_breakers"),
        ({"allowed_token_ids": [97]}, "allowed_token_ids"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"logprob_token_ids": [97]}, "logprob_token_ids"),
        ({"structured_outputs": {"choice": ["a", "b"]}, "top_k": 5}, "structured_outputs"),
        ({"response_format": {"type": "json_object"}, "top_k": 5}, "response_format"),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "start: /a/"}}, "structured_outputs"),
        (
            {
                "response_format": {
                    "type": "json_object",
                    "schema": {"type": "number", "multipleOf": 3},
                }
            },
            "response_format",
        ),
    ],
)
async def test_what_it_cannot_give_is_refused_by_name(
    client: Client, body: dict[str, Any], param: str
) -> None:
    error = await client.refuse(prompt="a", max_tokens=3, **body)
    assert error["param"] == param
    assert "llama-server" in error["message"]
    assert "127.0.0.1" not in error["message"]


async def test_R17_samplers(client: Client) -> None:
    """Each is honoured: the penalty sees the prompt, DRY ends a loop, two cuts leave one token."""
    letters = {str(ord(letter)): 100 for letter in "abcde"}
    body: dict[str, Any] = {"prompt": "abcabc", "temperature": 0, "logit_bias": letters}
    new = await client.complete(**body, max_tokens=2, repetition_penalty=100)
    assert set(new["choices"][0]["text"]) == {"d", "e"}
    loop = {"prompt": "ab" * 8, "temperature": 0, "max_tokens": 8}
    loop["logit_bias"] = {str(ord(letter)): 100 for letter in "ab"}
    dry = await client.complete(**loop, dry_multiplier=50, dry_sequence_breakers=["z"])
    assert "abab" not in dry["choices"][0]["text"]
    free: dict[str, Any] = {"prompt": "x", "max_tokens": 1, "logit_bias": letters}
    (likeliest,) = await texts_of(client, 1, **{**free, "temperature": 0})
    free["temperature"] = 2
    drawn = await texts_of(client, 12, **free)
    assert likeliest in drawn
    typical = await texts_of(client, 12, **free, typical_p=1e-6)
    assert len(typical) == 1
    assert len(drawn) > 1
    others = await texts_of(client, 12, **free, xtc_probability=1, xtc_threshold=1e-6)
    assert likeliest not in others


async def texts_of(client: Client, seeds: int, **body: Any) -> set[str]:
    answers = [await client.complete(**body, seed=seed) for seed in range(seeds)]
    return {answer["choices"][0]["text"] for answer in answers}


async def test_R17_stop_token_ids(client: Client) -> None:
    body: dict[str, Any] = {"prompt": "x", "logit_bias": {"98": 100}, "max_tokens": 5,
                            "stop_token_ids": [98]}  # fmt: skip
    for include, text in ((False, ""), (True, "b")):
        answer = await client.complete(**body, include_stop_str_in_output=include)
        assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (
            text, "stop",
        )  # fmt: skip
        assert answer["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize("temperature", [0, 1])
async def test_R17_structured_output(client: Client, temperature: float) -> None:
    schema = {
        "type": "object",
        "properties": {"state": {"enum": ["open", "paid"]}, "gift": {"type": "boolean"}},
        "required": ["state", "gift"],
        "additionalProperties": False,
    }
    body: dict[str, Any] = {"prompt": "x", "max_tokens": 200, "temperature": temperature, "n": 2}
    asked = {"type": "json_schema", "json_schema": {"name": "order", "schema": schema}}
    answer = await client.complete(**body, response_format=asked, logprobs=1)
    for choice in answer["choices"]:
        order = json.loads(choice["text"])
        assert order["state"] in {"open", "paid"}
        assert isinstance(order["gift"], bool)
        assert choice["finish_reason"] == "stop"
    choices = ['say "yes"', "back\\slash", "é\n"]
    for grammar, texts in (
        ({"choice": choices}, choices), ({"grammar": 'root ::= ("x" | "yy") "z"'}, ["xz", "yyz"]),
    ):  # fmt: skip
        answer = await client.complete(**body, structured_outputs=grammar)
        assert all(choice["text"] in texts for choice in answer["choices"])


async def test_R4_H12_limits_of_the_context(client: Client) -> None:
    await real_servers.a_prompt_beyond_the_context_is_refused(client)
    nothing = await client.complete(prompt="a", max_tokens=0)
    assert nothing["choices"][0]["text"] == ""


async def test_cached_tokens_are_passed_on(client: Client) -> None:
    await real_servers.cached_tokens_are_passed_on(client, prompt_tokens=200)


async def test_S8_a_client_that_leaves(client: Client, engine: RemoteEngine) -> None:
    await real_servers.a_client_that_leaves_stops_it(client, engine)
    assert msgspec.structs.asdict(engine.card)["context_tokens"] == 512
