"""Requests over HTTP to a model whose layers are all on a GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterword.engine.llama.engine import open_engine
from afterword.engine.llama.loading import EngineOptions
from conftest import make_client
from properties.laws import delivered_the_same
from properties.requests import bodies
from support.asgi import Client
from zoo.making import make_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("contract") / "llama.gguf")


@pytest.fixture(scope="module")
def client(path: Path) -> Iterator[Client]:
    options = EngineOptions(ctx=256, slots=4, threads=1)
    engine = open_engine(path, digest="0" * 64, name="m", options=options)
    assert engine.card.details["gpu_layers"] == engine.card.details["layers"]
    yield make_client({"toy": engine})
    asyncio.run(engine.aclose())


@pytest.mark.whole
@given(
    body=st.booleans().flatmap(lambda greedy: bodies(greedy=greedy)),
    max_tokens=st.integers(0, 8),
    usage=st.booleans(),
)
@settings(max_examples=25, deadline=None)
async def test_one_meaning_two_deliveries(
    client: Client, body: dict[str, Any], max_tokens: int, usage: bool
) -> None:
    short = {**body, "model": "toy", "max_tokens": max_tokens}
    if "min_tokens" in body:
        short["min_tokens"] = min(body["min_tokens"], max_tokens)
    await delivered_the_same(client, short, usage=usage)


async def test_scores_of_a_prompt_are_those_of_what_was_written(client: Client) -> None:
    """E1: what was generated with log-probabilities is scored the same as a prompt."""
    written = await client.complete(
        prompt=[270, 280, 290], max_tokens=12, temperature=0, logprobs=2, return_token_ids=True
    )
    (choice,) = written["choices"]
    ids = choice["token_ids"]
    scored = await client.complete(
        prompt=[270, 280, 290, *ids], max_tokens=0, echo=True, logprobs=2
    )
    again = scored["choices"][0]["logprobs"]["token_logprobs"][-len(ids) :]
    assert again == pytest.approx(choice["logprobs"]["token_logprobs"], abs=0.05)


async def test_seeds_give_the_same_again(client: Client) -> None:
    asked = {"prompt": [270, 280, 290], "max_tokens": 12, "seed": 5, "n": 2, "best_of": 3}
    first, second = [await client.complete(**asked) for _ in range(2)]
    assert first["choices"] == second["choices"]
    other = await client.complete(**{**asked, "seed": 6})
    assert other["choices"] != first["choices"]


async def test_one_sequence_at_a_time_depends_on_no_other(path: Path) -> None:
    """``--max-sequences 1`` is what there is for answers that a batch may not change."""
    options = EngineOptions(ctx=256, slots=1, threads=1)
    engine = open_engine(path, digest="0" * 64, name="m", options=options)
    client = make_client({"toy": engine})
    asked = [{"prompt": [270 + i, 280, 290], "max_tokens": 8, "seed": i} for i in range(4)]
    alone = [(await client.complete(**each))["choices"] for each in asked]
    together = await asyncio.gather(*(client.complete(**each) for each in asked))
    await engine.aclose()
    assert [answer["choices"] for answer in together] == alone
