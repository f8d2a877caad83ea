"""F: fill in the middle, on the toy model. ``engine/llama`` tests the layouts of families."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from afterword.engine.toy import ToyTokenizer, toy_engine
from contract.conftest import Lacks
from contract.test_s_stream import AT_HAND, NO_END, Gate, slots_free
from support.asgi import Client, chunks_of, fold

TOKENIZER = ToyTokenizer()
ROLE = {name: TOKENIZER.pieces.index(f"<|fim_{name}|>".encode()) for name in
        ("prefix", "suffix", "middle", "pad")}  # fmt: skip


def laid_out(prefix: str, suffix: str) -> list[int]:
    before, after = TOKENIZER.encode(prefix), TOKENIZER.encode(suffix)
    return [ROLE["prefix"], *before, ROLE["suffix"], *after, ROLE["middle"]]


async def test_F1_F2_the_middle_is_what_the_layout_gives(client: Client) -> None:
    filled = await client.complete(prompt="ab", suffix="cd", max_tokens=9, temperature=0)
    by_hand = await client.complete(prompt=laid_out("ab", "cd"), max_tokens=9, temperature=0)
    assert filled["choices"][0]["text"] == by_hand["choices"][0]["text"]
    assert filled["usage"]["prompt_tokens"] == 7
    ids = await client.complete(
        prompt=TOKENIZER.encode("ab"), suffix="cd", max_tokens=9, temperature=0
    )
    assert ids["choices"] == filled["choices"]
    without = await client.complete(prompt="ab", max_tokens=9, temperature=0)
    assert without["choices"] != filled["choices"]


async def test_F1_an_empty_prefix(client: Client) -> None:
    # The toy would draw a marker, which ends a middle only.
    more = {"max_tokens": 9, "temperature": 0, "logit_bias": {str(i): -100 for i in ROLE.values()}}
    filled = await client.complete(suffix="cd", **more)
    by_hand = await client.complete(prompt=laid_out("", "cd"), **more)
    assert filled["choices"][0]["text"] == by_hand["choices"][0]["text"]


async def test_F2_the_familys_own_end_tokens(serve: Callable[..., Client]) -> None:
    bias = {str(ROLE["pad"]): 100}
    client = serve(toy_engine())
    filled = await client.complete(
        prompt="ab", suffix="cd", max_tokens=5, temperature=0, logit_bias=bias
    )
    assert filled["choices"][0]["finish_reason"] == "stop"
    assert filled["choices"][0]["text"] == ""
    plain = await client.complete(prompt="ab", max_tokens=5, temperature=0, logit_bias=bias)
    assert plain["choices"][0]["finish_reason"] == "length"


async def test_F2_R17_min_tokens_bans_the_familys_own_end_tokens(client: Client) -> None:
    answer = await client.complete(prompt="ab", suffix="cd", max_tokens=6, min_tokens=3,
                                   temperature=0, logit_bias={str(ROLE["pad"]): 100})  # fmt: skip
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_F2_special_names_in_the_clients_text_are_text(client: Client) -> None:
    answer = await client.complete(prompt="<|fim_middle|>", suffix="x", max_tokens=0)
    assert answer["usage"]["prompt_tokens"] == len(b"<|fim_middle|>") + 4


async def test_F_streamed_with_n_stop_and_logprobs(client: Client) -> None:
    body = {"prompt": "ab", "suffix": "cd", "n": 2, "stop": ["e", "a"], "logprobs": 2, "seed": 1,
            "max_tokens": 20}  # fmt: skip
    answer = await client.complete(**body)
    assert fold(await client.stream(**body), usage=False)["choices"] == answer["choices"]
    assert answer["choices"][0]["logprobs"]["text_offset"][0] == 2


async def test_F4_echo(client: Client) -> None:
    bare = await client.complete(prompt="ab", suffix="cd", max_tokens=9, temperature=0)
    echoed = await client.complete(prompt="ab", suffix="cd", max_tokens=9, temperature=0, echo=True)
    assert echoed["choices"][0]["text"] == "ab" + bare["choices"][0]["text"]
    error = await client.refuse(prompt="ab", suffix="cd", echo=True, logprobs=0)
    assert error["param"] == "suffix"


PLACE = {"input_prefix": "ab\n", "input_suffix": "cd"}
FIM = "/v1/fim/completions"


async def infill(client: Client, **body: Any) -> dict[str, Any]:
    reply = await client.post("/infill", {**PLACE, **body})
    assert reply.status == 200, reply.body
    answer: dict[str, Any] = reply.json()
    return answer


async def refused(client: Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = await client.post(path, body)
    assert reply.status == 400, reply.body
    assert reply.error["type"] == "invalid_request_error"
    return reply.error


async def test_F5_mistrals_route_is_the_same_completion(client: Client) -> None:
    body = {"prompt": "ab", "suffix": "cd", "max_tokens": 9, "stop": ["zz"], "min_tokens": 2,
            "temperature": 0.8, "top_p": 0.9}  # fmt: skip
    plain = await client.complete(**body, seed=3)
    reply = await client.post(FIM, {"model": "toy", **body, "random_seed": 3})
    answer = reply.json()
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["message"] == {"role": "assistant", "content": plain["choices"][0]["text"]}
    assert choice["finish_reason"] == plain["choices"][0]["finish_reason"]
    assert answer["usage"]["total_tokens"] == plain["usage"]["total_tokens"]
    assert answer["model"] == "toy"


async def test_F5_mistrals_stream_folds_to_its_answer(client: Client) -> None:
    body = {"model": "toy", "prompt": "ab", "suffix": "cd", "max_tokens": 12, "n": 2, "seed": 1,
            "stop": ["e"]}  # fmt: skip
    answer = (await client.post(FIM, body)).json()
    reply = await client.post(FIM, {**body, "stream": True})
    chunks = chunks_of(reply.body)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    texts = ["", ""]
    for chunk in chunks:
        (part,) = chunk["choices"]
        texts[part["index"]] += part["delta"]["content"]
    assert texts == [choice["message"]["content"] for choice in answer["choices"]]
    assert [chunk for chunk in chunks if "usage" in chunk] == [chunks[-1]]
    assert chunks[-1]["usage"]["completion_tokens"] == answer["usage"]["completion_tokens"]


async def test_F5_mistrals_stream_with_options(client: Client) -> None:
    options = {"include_usage": True, "include_obfuscation": True}
    body = {"model": "toy", "prompt": "ab", "suffix": "cd", "max_tokens": 4, "stream": True}
    chunks = chunks_of((await client.post(FIM, {**body, "stream_options": options})).body)
    *parts, last = chunks
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 0
    for part in parts:
        size = len(part["choices"][0]["delta"]["content"]) + len(part["obfuscation"])
        assert size % 32 == 0


async def test_F5_mistrals_suffix_is_optional(client: Client) -> None:
    body = {"prompt": "ab", "max_tokens": 5, "temperature": 0}
    answer = (await client.post(FIM, {"model": "toy", **body})).json()
    plain = await client.complete(**body)
    assert answer["choices"][0]["message"]["content"] == plain["choices"][0]["text"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"echo": True}, "echo"),
        ({"logprobs": 1}, "logprobs"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"random_seed": 1, "seed": 1}, "random_seed"),
        ({"random_seed": "x"}, "random_seed"),
        ({"prompt": ["ab"]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"messages": []}, "messages"),
        ({"nonsense": 1}, "nonsense"),
        ({"model": None}, "model"),
        ({"n_predict": 5}, "n_predict"),
    ],
)
async def test_F5_mistrals_route_refuses_by_name(
    client: Client, more: dict[str, Any], param: str
) -> None:
    error = await refused(client, FIM, {"model": "toy", "prompt": "ab", "suffix": "cd", **more})
    assert error["param"] == param


async def test_F5_infill_is_the_same_completion(client: Client) -> None:
    body = {"temperature": 0, "stop": ["zz"]}
    plain = await client.complete(prompt="ab\nxy", suffix="cd", max_tokens=9, **body)
    answer = await infill(client, prompt="xy", n_predict=9, **body)
    assert answer["content"] == plain["choices"][0]["text"]
    assert answer["tokens_evaluated"] == plain["usage"]["prompt_tokens"]
    assert answer["tokens_predicted"] == plain["usage"]["completion_tokens"]
    assert answer["stop"] is True
    assert answer["model"] == "toy"
    assert answer["truncated"] is False
    assert answer["timings"]["predicted_n"] == answer["tokens_predicted"]
    assert (
        answer["timings"]["prompt_n"] + answer["timings"]["cache_n"] == answer["tokens_evaluated"]
    )
    assert answer["timings"]["prompt_ms"] > 0


async def test_F5_an_empty_suffix_is_still_an_infill(client: Client) -> None:
    # The toy would draw a marker, which ends a middle only.
    banned = {"logit_bias": {str(i): -100 for i in ROLE.values()}, "temperature": 0}
    answer = await infill(client, input_suffix="", n_predict=9, **banned)
    by_hand = await client.complete(prompt=laid_out("ab\n", ""), max_tokens=9, **banned)
    assert answer["content"] == by_hand["choices"][0]["text"]


async def test_F5_infills_stream_folds_to_its_answer(client: Client) -> None:
    body = {"n_predict": 12, "seed": 4, "stop": ["qq"], "n_probs": 2, "return_tokens": True}
    answer = await infill(client, **body)
    reply = await client.post("/infill", {**PLACE, **body, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in reply.body.decode().split("\n\n") if line]
    *parts, last = events
    assert "".join(part["content"] for part in parts) == answer["content"]
    assert [i for part in parts for i in part["tokens"]] == answer["tokens"]
    probabilities = [p for part in parts for p in part["completion_probabilities"]]
    assert [p["id"] for p in probabilities] == answer["tokens"]
    assert not any(part["stop"] for part in parts)
    assert last["stop"] is True
    assert last["content"] == ""
    assert last["stop_type"] == answer["stop_type"]
    assert last["tokens_predicted"] == answer["tokens_predicted"]


async def test_F5_n_probs_has_ids_bytes_and_likeliest_first(client: Client) -> None:
    answer = await infill(client, n_predict=5, temperature=0, n_probs=3)
    for entry in answer["completion_probabilities"]:
        top = entry["top_logprobs"]
        assert len(top) == 3
        assert top[0]["id"] == entry["id"]
        assert [t["logprob"] for t in top] == sorted((t["logprob"] for t in top), reverse=True)
        assert bytes(entry["bytes"]) == TOKENIZER.pieces[entry["id"]]
    assert "completion_probabilities" not in await infill(client, n_predict=1)


async def test_F5_the_seed_that_an_answer_tells_repeats_it(client: Client) -> None:
    answer = await infill(client, n_predict=12, temperature=2, top_k=0)
    seed = answer["generation_settings"]["seed"]
    again = await infill(client, n_predict=12, temperature=2, top_k=0, seed=seed)
    assert again["content"] == answer["content"]
    assert again["generation_settings"]["seed"] == seed


async def test_F5_R19_a_pair_of_a_bias_takes_an_id_without_a_fraction(client: Client) -> None:
    found = [
        await infill(client, n_predict=4, temperature=0, logit_bias=bias)
        for bias in ([[97, 100]], [[97.0, 100.0]], {"97": 100})
    ]
    assert {answer["content"] for answer in found} == {"aaaa"}


@AT_HAND
async def test_F5_n_predict_0_warms_the_cache(serve: Callable[..., Client]) -> None:
    client = serve(toy_engine())
    warm = await infill(client, n_predict=0, samplers=[], temperature=0.0, response_fields=[""])
    assert warm == {}
    typed = await infill(client, prompt="x", n_predict=1)
    assert typed["tokens_cached"] == len(laid_out("ab\n", "")) - 2
    again = await infill(client, n_predict=0)
    assert again["content"] == ""
    assert again["tokens_predicted"] == 0


async def test_F5_stop_types(client: Client) -> None:
    newline = {str(TOKENIZER.encode("\n\n")[0]): 100}
    limited = await infill(client, n_predict=2, logit_bias=newline)
    assert (limited["stop_type"], limited["stopping_word"]) == ("limit", "")
    assert limited["has_new_line"] is True
    word = await infill(client, n_predict=9, logit_bias=[[120, 100]], stop=["xxx"])
    assert (word["stop_type"], word["stopping_word"]) == ("word", "xxx")
    assert word["content"] == ""
    assert word["has_new_line"] is False
    ended = await infill(client, n_predict=9, logit_bias=[[ROLE["pad"], 100]])
    assert ended["stop_type"] == "eos"
    banned = await infill(client, n_predict=9, temperature=0, logit_bias=[[97, False]])
    assert "a" not in banned["content"]


async def test_F5_n_indent_ends_before_a_line_with_less(client: Client) -> None:
    newline = {str(TOKENIZER.encode("\n\n")[0]): 100}
    for stream in (False, True):
        reply = await client.post(
            "/infill",
            {**PLACE, "n_predict": 20, "n_indent": 4, "logit_bias": newline, "stream": stream},
        )
        events = [json.loads(line.removeprefix("data: "))
                  for line in reply.body.decode().split("\n\n") if line]  # fmt: skip
        assert "".join(event["content"] for event in events) == "\n"
        assert events[-1]["stop_type"] == "limit"
        assert events[-1]["tokens_predicted"] == 1


async def test_F5_response_fields(client: Client) -> None:
    fields = ["content", "timings/prompt_n", "generation_settings/n_predict", "none", "content/x"]
    answer = await infill(client, n_predict=3, temperature=0, response_fields=fields)
    assert set(answer) == {"content", "timings/prompt_n", "generation_settings/n_predict"}
    assert answer["generation_settings/n_predict"] == 3


async def test_F5_snippets_stand_before_the_place(client: Client) -> None:
    snippets = [{"text": "one", "filename": "a.py"}, {"text": "two", "time": 12}]
    answer = await infill(client, input_extra=snippets, n_predict=9, temperature=0)
    before = TOKENIZER.encode("\n\n--- snippet ---\n\none\n\n--- snippet ---\n\ntwo")
    assert answer["tokens_evaluated"] == len(before) + len(laid_out("ab\n", "cd"))
    by_hand = [*before, *laid_out("ab\n", "cd")]
    plain = await client.complete(prompt=by_hand, max_tokens=9, temperature=0)
    assert answer["content"] == plain["choices"][0]["text"]
    assert answer["truncated"] is False


async def test_F5_what_does_not_fit_is_cut_and_said(client: Client) -> None:
    snippets = [{"text": name * 60} for name in "xyz"]
    too_long = [{"text": "", "filename": "f" * 9000}, {"text": "x" * 9000}, {"text": ""}]
    assert (await infill(client, input_extra=too_long, n_predict=1))["truncated"] is True
    answer = await infill(client, input_extra=snippets, n_predict=8)
    assert answer["truncated"] is True
    assert answer["tokens_evaluated"] < 256
    long = await infill(client, input_prefix="a" * 900, input_suffix="b" * 900, n_predict=8)
    assert long["truncated"] is True
    assert 150 < long["tokens_evaluated"] <= 248
    endless = await infill(client, n_predict=10**6, logit_bias={"98": 100})
    assert endless["truncated"] is True
    assert endless["tokens_evaluated"] + endless["tokens_predicted"] == 256


async def test_F5_a_stop_at_the_last_place_of_the_context_cuts_nothing(client: Client) -> None:
    endless = {"n_predict": -1, "logit_bias": {"98": 100}}
    text = (await infill(client, **endless))["content"]
    stopped = await infill(client, **endless, stop=[text])
    assert stopped["stop_type"] == "word"
    assert (stopped["tokens_predicted"], stopped["truncated"]) == (len(text), False)


@AT_HAND
async def test_F5_typing_reuses_all_but_what_is_new(serve: Callable[..., Client]) -> None:
    """With files before it and a prefix that is cut, each keystroke finds the one before it."""
    client = serve(toy_engine(context_tokens=1024))
    snippets = [{"text": f"{i} " * 40, "filename": f"{i}.py"} for i in range(20)]
    costs = []
    for typed in range(1, 200):
        answer = await infill(
            client, input_extra=snippets, input_prefix="qw" * 300, prompt="x" * typed, n_predict=0
        )
        assert answer["truncated"] is True
        costs.append(answer["timings"]["prompt_n"])
    # One letter, the suffix and three tokens of the layout; a cut moves a few times.
    assert sorted(costs)[len(costs) // 2] <= 8
    assert sum(cost > 8 for cost in costs) <= 6


@pytest.mark.parametrize("client", ["here"], indirect=True)
async def test_F5_the_infill_filter(client: Client) -> None:
    """The filter ends what the toy model is not sure about."""
    body = {"top_k": 40, "top_p": 0.9, "samplers": ["top_k", "top_p", "infill"]}
    answer = await infill(client, n_predict=30, **body)
    assert answer["stop_type"] in {"eos", "limit"}
    assert (await infill(client, n_predict=30, **body, logit_bias={"97": 100}))[
        "content"
    ] == "a" * 30


@pytest.mark.parametrize("client", ["here", "behind afterword"], indirect=True)
async def test_F5_a_model_without_infill_tokens(client: Client) -> None:
    error = await refused(client, "/infill", {**PLACE, "model": "plain"})
    assert error["param"] == "input_suffix"
    assert "fill-in-the-middle" in error["message"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input_prefix": None}, "input_prefix"),
        ({"input_suffix": 5}, "input_suffix"),
        ({"input_extra": {}}, "input_extra"),
        ({"input_extra": ["a"]}, "input_extra"),
        ({"input_extra": [{}]}, "input_extra.text"),
        ({"input_extra": [{"text": "a", "name": "b"}]}, "input_extra.name"),
        ({"input_extra": [{"text": "a", "filename": 5}]}, "input_extra.filename"),
        ({"prompt": ["a"]}, "prompt"),
        ({"n_predict": -2}, "n_predict"),
        ({"n_predict": 3, "max_tokens": 3}, "max_tokens"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"logprobs": 99}, "logprobs"),
        ({"samplers": ["top_p", "top_k"], "top_k": 4, "top_p": 0.5}, "samplers"),
        ({"samplers": "kfypmxt"}, "samplers"),
        ({"samplers": ["infill"]}, "samplers"),
        ({"cache_prompt": False}, "cache_prompt"),
        ({"presence_penalty": 1.1, "repeat_last_n": 64}, "repeat_last_n"),
        ({"mirostat": 2}, "mirostat"),
        ({"grammar": "root ::= x"}, "grammar"),
        ({"n_cmpl": 2}, "n_cmpl"),
        ({"lora": [{"id": 0, "scale": 0.5}]}, "lora"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"response_fields": "content"}, "response_fields"),
        ({"logit_bias": [["a", 1]]}, "logit_bias"),
        ({"logit_bias": [[5, 1], [5, 2]]}, "logit_bias"),
        ({"logit_bias": [[10**6, 1]]}, "logit_bias"),
        ({"logit_bias": [[5.5, 1]]}, "logit_bias"),
        ({"logit_bias": [[-5, 1]]}, "logit_bias"),
        ({"logit_bias": [[True, 1]]}, "logit_bias"),
        ({"n_indent": -1}, "n_indent"),
        ({"t_max_predict_ms": "1"}, "t_max_predict_ms"),
        ({"nonsense": 1}, "nonsense"),
        ({"suffix": "x"}, "suffix"),
    ],
)
async def test_F5_infill_refuses_by_name(client: Client, more: dict[str, Any], param: str) -> None:
    error = await refused(client, "/infill", {**PLACE, "n_predict": 3, **more})
    assert error["param"] == param


async def test_F5_what_asks_for_nothing_is_honoured(client: Client) -> None:
    neutral = {"id_slot": 0, "cache_prompt": True, "t_max_prompt_ms": 500, "n_keep": 0,
               "penalty_last_n": 0,
               "timings_per_token": False, "lora": [], "repeat_penalty": 1.0, "repeat_last_n": 64,
               "mirostat": 0, "n_probs": 0, "grammar": "", "user": None, "max_tokens": None,
               "logprobs": None, "speculative.n_max": 16}  # fmt: skip
    answer = await infill(client, n_predict=5, temperature=0, **neutral)
    assert answer["content"] == (await infill(client, n_predict=5, temperature=0))["content"]


async def test_F5_R19_null_is_no_second_name(client: Client) -> None:
    answer = await infill(client, n_predict=None, max_tokens=3, temperature=0)
    assert answer["content"] == (await infill(client, n_predict=3, temperature=0))["content"]
    await refused(client, "/infill", {**PLACE, "n_predict": 3, "max_tokens": 3})


@pytest.mark.parametrize(("last", "window"), [(None, 64), (8, 8), (-1, -1), (200, 200)])
async def test_F5_infill_penalties_see_the_last_tokens(
    client: Client, lacks: Lacks, last: int | None, window: int
) -> None:
    """`repeat_last_n` is `repetition_penalty_range` here, and 64 without it, as in llama-server."""
    head, tail = "ab" * 40, "cd" * 40
    more = {"n_predict": 30, "temperature": 0, "repeat_penalty": 1.8, "repeat_last_n": last}
    place = {"input_prefix": head, "input_suffix": tail}
    if "penalty_range" in lacks:
        await refused(client, "/infill", {**PLACE, **place, **more, "repeat_last_n": 8})
        return
    answer = await infill(client, **place, **more)
    by_hand = await client.complete(
        prompt=head, suffix=tail, max_tokens=30, temperature=0, repetition_penalty=1.8,
        repetition_penalty_range=window,
    )  # fmt: skip
    assert answer["content"] == by_hand["choices"][0]["text"]


@AT_HAND
async def test_F5_a_client_that_leaves_frees_its_slot(serve: Callable[..., Client]) -> None:
    # A marker ends a middle, too.
    endless = NO_END | {str(i): -100 for i in ROLE.values()}
    for path, body in (("/infill", PLACE), (FIM, {"model": "toy", "prompt": "a", "suffix": "b"})):
        gate = Gate()
        engine = toy_engine(before_decode=gate)
        client = serve(engine)
        exchange, run = client.begin({**body, "logit_bias": endless}, path=path)
        gate.allow(2)
        while gate.taken < 2 or engine.stats().running_sequences < 1:
            await asyncio.sleep(0)
        exchange.leave.set()
        await run
        before = gate.taken
        gate.allow(1)
        await slots_free(engine)
        assert gate.taken <= before + 1
        gate.allow(1000)
