"""Laws of answers, on random requests: they equal the oracle's, and the folded stream."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterword.engine.toy import ToyTokenizer
from properties.laws import delivered_alike
from properties.oracle import Oracle
from properties.requests import bodies
from support.asgi import Client
from support.examples import examples

ORACLES = {
    "toy": Oracle(ToyTokenizer(), 256),
    "toy-bos": Oracle(ToyTokenizer(adds_bos=True), 256),
}


def prompts_of(body: dict[str, Any]) -> list[Any]:
    prompt = body["prompt"]
    if isinstance(prompt, list) and isinstance(prompt[0], (str, list)):
        return prompt
    return [prompt]


@given(body=bodies(greedy=True), model=st.sampled_from(sorted(ORACLES)))
@settings(max_examples=examples(1000), deadline=None)
async def test_greedy_answers_are_the_oracles(
    client: Client, body: dict[str, Any], model: str
) -> None:
    """R2-R5, R10-R14, R17, A2-A5, E1-E5, L1-L6."""
    answer = await client.complete(**body, model=model)
    plain = dict(body)
    if isinstance(plain.get("logprobs"), bool):
        plain["logprobs"] = 0 if plain["logprobs"] else None
    expected = [ORACLES[model].answer(prompt, plain) for prompt in prompts_of(body)]
    assert len(answer["choices"]) == len(expected)
    for i, (choice, wanted) in enumerate(zip(answer["choices"], expected, strict=True)):
        assert choice["index"] == i
        assert choice["text"] == wanted["text"]
        assert choice["finish_reason"] == wanted["finish_reason"]
        compare_logprobs(choice["logprobs"], wanted["logprobs"])
    usage = answer["usage"]
    assert usage["prompt_tokens"] == sum(wanted["prompt_tokens"] for wanted in expected)
    assert usage["completion_tokens"] == sum(wanted["tokens"] for wanted in expected)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def compare_logprobs(got: dict[str, Any] | None, wanted: list[Any] | None) -> None:
    if got is None or wanted is None:
        assert got is None
        assert wanted is None
        return
    columns = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    assert tuple(got) == columns
    rows = list(zip(*(got[name] for name in columns), strict=True))
    assert len(rows) == len(wanted)
    for (token, logprob, top, offset), (w_token, w_logprob, w_top, w_offset) in zip(
        rows, wanted, strict=True
    ):
        assert (token, offset) == (w_token, w_offset)
        if w_logprob is None:
            assert logprob is None
            assert top is None
            continue
        assert math.isclose(logprob, w_logprob, abs_tol=1e-4)
        assert logprob in top.values()
        keys = [key for key, _ in w_top]
        if len(set(keys)) == len(keys):
            assert list(top) == keys
        assert list(top.values()) == pytest.approx([v for _, v in w_top], abs=1e-4)


@given(body=bodies(greedy=False), usage=st.booleans())
@settings(max_examples=examples(1500), deadline=None)
async def test_a_folded_stream_is_the_answer(
    client: Client, body: dict[str, Any], usage: bool
) -> None:
    await delivered_alike(client, body, usage=usage)


@given(body=bodies(greedy=False))
@settings(max_examples=examples(300), deadline=None)
async def test_D2_a_prompt_alone_and_in_an_array(client: Client, body: dict[str, Any]) -> None:
    together = await client.complete(**body)
    n = body["n"]
    for i, prompt in enumerate(prompts_of(body)):
        alone = await client.complete(**{**body, "prompt": prompt})
        for j in range(n):
            assert alone["choices"][j] == {**together["choices"][i * n + j], "index": j}


@given(body=bodies(greedy=False), more=st.integers(0, 3))
@settings(max_examples=examples(300), deadline=None)
async def test_A6_best_of_shows_the_likeliest_candidates(
    client: Client, body: dict[str, Any], more: int
) -> None:
    """In any request, ``best_of`` shows the best of what ``n`` shows for the same seed."""
    n = body["n"]
    candidates = n + more
    scored = {**body, "logprobs": 0, "echo": False, "n": candidates}
    everyone = await client.complete(**scored)
    best = await client.complete(**{**body, "best_of": candidates})
    shown = await client.complete(**{**body, "n": candidates})
    for i in range(len(prompts_of(body))):
        siblings = everyone["choices"][i * candidates : (i + 1) * candidates]

        def mean(j: int, siblings: list[Any] = siblings) -> float:
            values = siblings[j]["logprobs"]["token_logprobs"]
            return float(sum(values)) / max(len(values), 1)

        ranked = sorted(range(candidates), key=mean, reverse=True) if more else range(candidates)
        for j, wanted in enumerate(list(ranked)[:n]):
            expected = shown["choices"][i * candidates + wanted]
            assert best["choices"][i * n + j] == {**expected, "index": i * n + j}
    assert best["usage"]["completion_tokens"] == everyone["usage"]["completion_tokens"]
