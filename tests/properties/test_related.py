"""Laws of related requests: a field changes what it says, and nothing else."""

from __future__ import annotations

from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from afterword.engine.toy import ToyTokenizer
from properties.laws import delivered_the_same
from properties.requests import STOP, TEXT, bodies
from support.asgi import Client, chunks_of
from support.examples import examples

MODELS = st.sampled_from(["toy", "toy-bos", "plain"])
SUFFIX = TEXT.filter(bool)
TOKENIZERS = {"toy": ToyTokenizer(), "toy-bos": ToyTokenizer(adds_bos=True)}


async def choices(client: Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.complete(**body))["choices"]
    return found


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


def infills(body: dict[str, Any], suffix: str, model: str) -> dict[str, Any]:
    """Returns the request with a suffix, and without what a suffix excludes."""
    body = {**without(body, "prompt_logprobs"), "suffix": suffix, "model": model}
    if body.get("echo"):
        body = without(body, "logprobs", "logprob_token_ids")
    return body


@given(body=bodies(greedy=False), suffix=SUFFIX, model=MODELS, usage=st.booleans())
@settings(max_examples=examples(100), deadline=None)
async def test_F1_a_folded_stream_of_a_middle_is_the_answer(
    client: Client, body: dict[str, Any], suffix: str, model: str, usage: bool
) -> None:
    body = infills(body, suffix, model)
    if model == "plain":
        assume(not isinstance(body["prompt"], list))
    await delivered_the_same(client, body, usage=usage)


@given(body=bodies(greedy=False), prompts=st.lists(TEXT, min_size=1, max_size=2), suffix=SUFFIX)
@settings(max_examples=examples(100), deadline=None)
async def test_F4_echo_puts_the_prompt_before_the_middle(
    client: Client, body: dict[str, Any], prompts: list[str], suffix: str
) -> None:
    body = infills({**body, "echo": True, "prompt": prompts}, suffix, "toy")
    body = without(body, "truncate_prompt_tokens")
    bare = await choices(client, {**body, "echo": False})
    both = await choices(client, body)
    for choice in bare:
        choice["text"] = prompts[choice["index"] // body["n"]] + choice["text"]
    assert both == bare


@given(body=bodies(greedy=False), model=MODELS, logprobs=st.integers(0, 5))
@settings(max_examples=examples(100), deadline=None)
async def test_L2_log_probabilities_change_no_text(
    client: Client, body: dict[str, Any], model: str, logprobs: int
) -> None:
    body = {**without(body, "logprobs", "logprob_token_ids"), "model": model}
    plain = await choices(client, body)
    scored = await choices(client, {**body, "logprobs": logprobs})
    assert [{**choice, "logprobs": None} for choice in scored] == plain


@given(body=bodies(greedy=False), model=MODELS, more=st.integers(1, 2))
@settings(max_examples=examples(100), deadline=None)
async def test_D2_more_choices_change_none(
    client: Client, body: dict[str, Any], model: str, more: int
) -> None:
    body, n = {**body, "model": model}, body["n"]
    few = await choices(client, body)
    many = await choices(client, {**body, "n": n + more})
    for i in range(len(few) // n):
        for j in range(n):
            index = i * (n + more) + j
            assert many[index] == {**few[i * n + j], "index": index}


@given(body=bodies(greedy=False), text=TEXT.filter(bool), model=st.sampled_from(sorted(TOKENIZERS)))
@settings(max_examples=examples(100), deadline=None)
async def test_R2_text_and_its_tokens_give_one_answer(
    client: Client, body: dict[str, Any], text: str, model: str
) -> None:
    tokenizer = TOKENIZERS[model]
    ids = list(tokenizer.encode(text))
    body = {**without(body, "add_special_tokens", "truncate_prompt_tokens"), "model": model}
    if model == "toy-bos":
        body = without(body, "echo", "prompt_logprobs", "return_token_ids", "logprob_token_ids")
        bos = tokenizer.roles["bos"]
        ids = ids if ids[0] == bos else [bos, *ids]
        body["logprobs"] = None
    by_text = await choices(client, {**body, "prompt": text})
    assert by_text == await choices(client, {**body, "prompt": ids})


@given(body=bodies(greedy=False), k=st.integers(1, 12))
@settings(max_examples=examples(100), deadline=None)
async def test_R17_a_truncated_prompt_is_its_last_tokens(
    client: Client, body: dict[str, Any], k: int
) -> None:
    ids = [97 + i for i in range(9)]
    body = without(body, "truncate_prompt_tokens")
    cut = await client.complete(**{**body, "prompt": ids, "truncate_prompt_tokens": k})
    assert cut["choices"] == await choices(client, {**body, "prompt": ids[-k:]})
    assert cut["usage"]["prompt_tokens"] == min(k, 9)


@given(body=bodies(greedy=False), model=MODELS, tokens=st.integers(0, 24))
@settings(max_examples=examples(100), deadline=None)
async def test_R4_fewer_tokens_are_the_beginning_of_more(
    client: Client, body: dict[str, Any], model: str, tokens: int
) -> None:
    body = {**without(body, "min_tokens", "echo"), "model": model, "logprobs": 0}
    more = await choices(client, {**body, "max_tokens": 24})
    fewer = await choices(client, {**body, "max_tokens": tokens})
    for long, short in zip(more, fewer, strict=True):
        kept = short["logprobs"]["tokens"]
        assert kept == long["logprobs"]["tokens"][: len(kept)]
        if long["finish_reason"] == "stop" and len(long["logprobs"]["tokens"]) <= tokens:
            assert short == long
        else:
            assert (len(kept), short["finish_reason"]) == (tokens, "length")


@given(
    body=bodies(greedy=False),
    model=MODELS,
    stops=st.lists(STOP, min_size=1, max_size=4),
)
@settings(max_examples=examples(100), deadline=None)
async def test_R12_a_stop_is_where_it_first_stands(
    client: Client, body: dict[str, Any], model: str, stops: list[str]
) -> None:
    """The order and repetition of stops do not matter; the text goes on up to the first one."""
    body = {
        **without(body, "min_tokens", "stop", "echo", "include_stop_str_in_output"),
        "model": model,
    }
    free = await choices(client, body)
    cut = await choices(client, {**body, "stop": stops})
    again = await choices(client, {**body, "stop": [*reversed(stops), *stops]})
    assert cut == again
    for whole, choice in zip(free, cut, strict=True):
        found = [whole["text"].find(stop) for stop in stops]
        if max(found) < 0:
            assert choice["text"] == whole["text"]
        else:
            assert whole["text"].startswith(choice["text"])
            assert choice["finish_reason"] == "stop"
            assert not any(stop in choice["text"] for stop in stops)
            assert any(whole["text"].startswith(choice["text"] + stop) for stop in stops)


@given(body=bodies(greedy=False), model=MODELS)
@settings(max_examples=examples(100), deadline=None)
async def test_S10_the_usage_of_chunks_adds_up(
    client: Client, body: dict[str, Any], model: str
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    raw = {**body, "model": model, "stream": True, "stream_options": options}
    reply = await client.post("/v1/completions", raw)
    *chunks, last = chunks_of(reply.body)
    assert last["choices"] == []
    ends: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        usage = chunk["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        before = ends.get(choice["index"], {"completion_tokens": 0})
        assert before["completion_tokens"] <= usage["completion_tokens"]
        ends[choice["index"]] = usage
    total = last["usage"]
    assert total["completion_tokens"] == sum(usage["completion_tokens"] for usage in ends.values())
    each = [ends[index]["prompt_tokens"] for index in sorted(ends)]
    assert total["prompt_tokens"] == sum(each[:: body["n"]])
