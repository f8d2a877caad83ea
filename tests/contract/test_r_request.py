"""R: what a request may say, and how it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from afterword.core.limits import Limits
from afterword.engine.toy import ToyTokenizer, toy_engine
from support.asgi import Client, fold

TOKENIZER = ToyTokenizer()
VOCABULARY = len(TOKENIZER.pieces)
END = sorted(TOKENIZER.end_ids)
PARTS_OF_CHARACTERS = [
    number
    for number, piece in enumerate(TOKENIZER.pieces)
    if "\ufffd" in piece.decode(errors="replace")
]


async def text(client: Client, **body: Any) -> str:
    answer = await client.complete(**{"temperature": 0, "max_tokens": 8, **body})
    (choice,) = answer["choices"]
    result: str = choice["text"]
    return result


async def test_R1_model_is_required(client: Client) -> None:
    for body in ({}, {"model": None}, {"model": ""}):
        reply = await client.post("/v1/completions", body)
        assert reply.status == 400
        assert reply.error["message"] == "you must provide a model parameter"
        assert reply.error["param"] == "model"


async def test_R1_unknown_model(client: Client) -> None:
    reply = await client.post("/v1/completions", {"model": "davinci", "prompt": "a"})
    assert reply.status == 404
    assert reply.error["code"] == "model_not_found"
    assert "`davinci`" in reply.error["message"]


async def test_R1_the_answer_echoes_the_alias(client: Client) -> None:
    alias = "gpt-3.5-turbo-instruct"
    answer = await client.complete(model=alias, prompt="a", max_tokens=4, temperature=0)
    named = await client.complete(model="toy", prompt="a", max_tokens=4, temperature=0)
    assert answer["model"] == alias
    assert answer["choices"] == named["choices"]


async def test_R1_operators_may_make_it_optional(serve: Callable[..., Client]) -> None:
    client = serve(toy_engine(), limits=Limits(require_model=False))
    reply = await client.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
    assert reply.status == 200
    assert reply.json()["model"] == "toy"


async def test_R2_nothing_means_the_start_of_a_document(client: Client) -> None:
    plain: list[dict[str, Any]] = [
        {},
        {"prompt": None},
        {"prompt": ""},
        {"prompt": [""]},
        {"prompt": [END[0]]},
    ]
    assert len({await text(client, model="plain", **body) for body in plain}) == 1
    bos = TOKENIZER.roles["bos"]
    with_bos: list[dict[str, Any]] = [{}, {"prompt": ""}, {"prompt": [bos]}]
    assert len({await text(client, model="toy-bos", **body) for body in with_bos}) == 1


async def test_R2_special_tokens_are_parsed_and_bos_added(client: Client) -> None:
    bos = TOKENIZER.roles["bos"]
    ids = TOKENIZER.encode("a<|im_end|>b")
    assert len(ids) == 3
    assert await text(client, prompt="a<|im_end|>b") == await text(client, prompt=ids)
    for prompt in ("a b", "<|im_start|>a b"):
        by_ids = await text(client, model="toy-bos", prompt=[bos, *TOKENIZER.encode("a b")])
        assert await text(client, model="toy-bos", prompt=prompt) == by_ids


async def test_R2_token_ids_are_taken_as_given(client: Client) -> None:
    answer = await client.complete(model="toy-bos", prompt=[5, 6, 7], max_tokens=0)
    assert answer["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize(
    "prompt",
    [
        [], [[]], [[1], []], ["a", 1], [1, "a"], ["a", [1]], [[1], 2], [1.5], [True], [[True]],
        [None], 5, True, {}, [-1], [VOCABULARY], [[0, VOCABULARY]], [2**70], [["a"]], [[[1]]],
    ],
)  # fmt: skip
async def test_R2_refused_prompts(client: Client, prompt: Any) -> None:
    error = await client.refuse(prompt=prompt)
    assert error["param"] == "prompt"


async def test_R3_empty_suffix_is_none(client: Client) -> None:
    bare = await text(client, model="plain", prompt="a")
    assert await text(client, model="plain", prompt="a", suffix="") == bare
    assert await text(client, model="plain", prompt="a", suffix=None) == bare


async def test_R4_default_is_until_the_context_is_full(client: Client) -> None:
    bans = {str(i): -100 for i in END}
    answer = await client.complete(prompt=[7] * 200, temperature=0, logit_bias=bans)
    assert answer["usage"]["completion_tokens"] == 56
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_R4_operators_may_set_another_default(serve: Callable[..., Client]) -> None:
    client = serve(toy_engine(), limits=Limits(default_max_tokens=16))
    bans = {str(i): -100 for i in END}
    answer = await client.complete(prompt="a", temperature=0, logit_bias=bans)
    assert answer["usage"]["completion_tokens"] == 16
    answer = await client.complete(prompt=[7] * 250, temperature=0, logit_bias=bans)
    assert answer["usage"]["completion_tokens"] == 6


async def test_R4_zero_generates_nothing(client: Client) -> None:
    answer = await client.complete(prompt="a", max_tokens=0)
    assert answer["choices"][0]["text"] == ""
    assert answer["usage"]["completion_tokens"] == 0


async def test_R4_over_the_context(client: Client) -> None:
    error = await client.refuse(prompt=[7] * 250, max_tokens=7)
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is 256 tokens" in error["message"]
    assert "requested 257 tokens (250 in your prompt; 7 for the completion)" in error["message"]
    error = await client.refuse(prompt=[7] * 256)
    assert error["code"] == "context_length_exceeded"
    await client.complete(prompt=[7] * 256, max_tokens=0)
    await client.complete(prompt=[7] * 249, max_tokens=7)


async def test_R5_R6_single_token_settings_agree(client: Client) -> None:
    greedy = await text(client, prompt="abc", max_tokens=20)
    for body in ({"temperature": 1, "top_p": 0}, {"temperature": 2, "top_k": 1}):
        assert await text(client, prompt="abc", max_tokens=20, **body) == greedy


async def test_R6_temperature_and_top_p_together(client: Client) -> None:
    """Both count: the nucleus of a flatter distribution has more tokens."""

    async def drawn(**body: float) -> set[str]:
        answer = await client.complete(prompt="a", n=64, max_tokens=1, seed=1, **body)
        return {choice["text"] for choice in answer["choices"]}

    cold = await drawn(temperature=0.5, top_p=0.5)
    both = await drawn(temperature=2, top_p=0.5)
    wide = await drawn(temperature=2)
    assert len(cold) < len(both) < len(wide)


async def test_R7_n_choices_differ(client: Client) -> None:
    answer = await client.complete(prompt="a", n=8, max_tokens=12, seed=1)
    assert [choice["index"] for choice in answer["choices"]] == list(range(8))
    assert len({choice["text"] for choice in answer["choices"]}) > 4


async def test_R8_best_of_is_n_for_null_zero_and_equal(client: Client) -> None:
    wanted = (await client.complete(prompt="a", n=3, max_tokens=6, seed=5))["choices"]
    for best_of in (None, 0, 3):
        answer = await client.complete(prompt="a", n=3, best_of=best_of, max_tokens=6, seed=5)
        assert answer["choices"] == wanted
        chunks = await client.stream(prompt="a", n=3, best_of=best_of, max_tokens=6, seed=5)
        assert fold(chunks, usage=False)["choices"] == wanted


async def test_R8_best_of_cannot_be_streamed(client: Client) -> None:
    error = await client.refuse(prompt="a", n=2, best_of=3, stream=True)
    assert error["param"] == "best_of"


async def test_R9_stream_options_need_a_stream(client: Client) -> None:
    for options in ({}, {"include_usage": True}):
        error = await client.refuse(prompt="a", stream_options=options)
        assert error["param"] == "stream_options"
    error = await client.refuse(prompt="a", stream=True, stream_options={"other": True})
    assert error["param"] == "stream_options.other"
    error = await client.refuse(prompt="a", stream=True, stream_options={"include_usage": 1})
    assert error["param"] == "stream_options.include_usage"
    await client.stream(prompt="a", max_tokens=1, stream_options=None)


async def test_R9_obfuscation_evens_out_lengths(client: Client) -> None:
    chunks = await client.stream(
        prompt="a", max_tokens=8, temperature=0, stream_options={"include_obfuscation": True}
    )
    sizes = {len(chunk["choices"][0]["text"]) + len(chunk["obfuscation"]) for chunk in chunks}
    assert sizes <= {32, 64}
    plain = await client.stream(prompt="a", max_tokens=8, temperature=0)
    assert all("obfuscation" not in chunk for chunk in plain)


async def test_R10_true_is_zero_and_false_is_none(client: Client) -> None:
    true = await client.complete(prompt="a", max_tokens=2, temperature=0, logprobs=True)
    zero = await client.complete(prompt="a", max_tokens=2, temperature=0, logprobs=0)
    assert true["choices"] == zero["choices"]
    assert all(len(top) == 1 for top in zero["choices"][0]["logprobs"]["top_logprobs"])
    false = await client.complete(prompt="a", max_tokens=2, temperature=0, logprobs=False)
    assert false["choices"][0]["logprobs"] is None


async def test_R10_the_limit_is_the_operators(client: Client, serve: Callable[..., Client]) -> None:
    assert (await client.refuse(prompt="a", logprobs=21))["param"] == "logprobs"
    more = serve(toy_engine(), limits=Limits(max_logprobs=100))
    answer = await more.complete(prompt="a", max_tokens=1, logprobs=100)
    assert len(answer["choices"][0]["logprobs"]["top_logprobs"][0]) >= 100


async def test_R12_stops(client: Client, serve: Callable[..., Client]) -> None:
    bare = await text(client, prompt="a", max_tokens=20)
    nothing: list[Any] = [None, []]
    for none in nothing:
        assert await text(client, prompt="a", max_tokens=20, stop=none) == bare
    cut = bare[2:5]
    for stop in (cut, [cut], ["zzz", cut, "yyy", "xxx"]):
        assert await text(client, prompt="a", max_tokens=20, stop=stop) == bare[: bare.find(cut)]
    for stop in ("", [""], ["a", ""]):
        assert (await client.refuse(prompt="a", stop=stop))["param"] == "stop"
    await client.complete(prompt="a", max_tokens=1, stop=[str(i) for i in range(16)])
    more = serve(toy_engine(), limits=Limits(max_stops=20))
    await more.complete(prompt="a", max_tokens=1, stop=[str(i) for i in range(20)])


async def test_R13_penalties_count_what_was_generated(client: Client) -> None:
    prompt = "the the the the"
    banned = {str(i): -100 for i in range(VOCABULARY) if i not in {97, 98, 99}}
    free = await text(client, prompt=prompt, max_tokens=12, logit_bias=banned)
    assert set(free) <= set("abc")
    once = await text(client, prompt=prompt, max_tokens=3, logit_bias=banned, presence_penalty=2,
                      frequency_penalty=2)  # fmt: skip
    assert once[0] == free[0]
    rewarded = await text(client, prompt=prompt, max_tokens=24, logit_bias=banned,
                          presence_penalty=-2, frequency_penalty=-2)  # fmt: skip
    assert len(set(rewarded[-6:])) == 1


@pytest.mark.parametrize(
    "bias",
    [{"a": 1}, {"1.5": 1}, {"-1": 1}, {str(VOCABULARY): 1}, {"1": 101}, {"1": -100.5}, {"1": "x"},
     {"1": None}, {"1": True}, {" 1": 1}, {"": 1}, {"9" * 30: 1}, [], "x", {"\u0661": 1}],
)  # fmt: skip
async def test_R14_refused_biases(client: Client, bias: Any) -> None:
    assert (await client.refuse(prompt="a", logit_bias=bias))["param"] == "logit_bias"


async def test_R14_minus_100_bans_and_100_forces(client: Client) -> None:
    assert await text(client, prompt="a", logit_bias={"98": 100}) == "b" * 8
    for seed in range(5):
        drawn = await text(client, prompt="a", temperature=2, seed=seed, max_tokens=30,
                           logit_bias={"97": -100, "98": 100})  # fmt: skip
        assert "a" not in drawn
    everything = {str(i): -100 for i in range(VOCABULARY)}
    assert (await client.refuse(prompt="a", logit_bias=everything))["param"] == "logit_bias"


async def test_R15_seeds(client: Client) -> None:
    async def drawn(**body: Any) -> str:
        return await text(client, prompt="a", temperature=2, max_tokens=16, **body)

    for seed in (0, 1, -1, 2**63 - 1, -(2**63)):
        assert await drawn(seed=seed) == await drawn(seed=seed)
    assert await drawn(seed=0) != await drawn(seed=1)
    assert len({await drawn() for _ in range(4)}) > 1
    for seed in (2**63, -(2**63) - 1, 2**70):
        error = await client.refuse(prompt="a", seed=seed)
        assert error["param"] == "seed"
        assert ": expected a 64-bit integer, but got " in error["message"]
    error = await client.refuse(prompt="a", max_tokens=2**63)
    assert ": expected a 64-bit integer of at least 0" in error["message"]


async def test_R16_user_is_a_string_that_can_be_recorded(client: Client) -> None:
    for user in ("somebody", "ü\u2028\n", "😀" * 1024):
        await client.complete(prompt="a", max_tokens=1, user=user)
    error = await client.refuse(prompt="a", user="x" * 1025)
    assert (error["param"], error["code"]) == ("user", "invalid_value")
    assert "at most 1024 characters" in error["message"]
    assert "1025 characters" in error["message"]


async def test_R17_min_tokens_and_ignore_eos(client: Client) -> None:
    forced = {str(END[0]): 100}
    ended = await client.complete(prompt="a", max_tokens=9, logit_bias=forced, temperature=0)
    assert ended["usage"]["completion_tokens"] == 1
    later = await client.complete(
        prompt="a", max_tokens=9, logit_bias=forced, temperature=0, min_tokens=5
    )
    assert later["usage"]["completion_tokens"] == 6
    assert later["choices"][0]["finish_reason"] == "stop"
    never = await client.complete(
        prompt="a", max_tokens=9, logit_bias=forced, temperature=0, ignore_eos=True
    )
    assert never["usage"]["completion_tokens"] == 9
    assert never["choices"][0]["text"] == ""
    assert never["choices"][0]["finish_reason"] == "length"


async def test_R17_min_tokens_holds_stop_strings_back(client: Client) -> None:
    """A stop counts if it completes after ``min_tokens`` tokens, wherever it begins."""
    words: dict[str, Any] = {
        "prompt": "a", "max_tokens": 12, "temperature": 0, "logprobs": 0, "ignore_eos": True,
        # The tokens' names are their text, and none of them is banned by ``min_tokens``.
        "logit_bias": {str(i): -100 for i in (*PARTS_OF_CHARACTERS, *END)},
    }  # fmt: skip
    whole = await client.complete(**words)
    tokens = whole["choices"][0]["logprobs"]["tokens"]
    text = whole["choices"][0]["text"]
    stop = tokens[3]
    texts = ["".join(tokens[:k]) for k in range(13)]

    def completes(k: int) -> bool:
        return stop in texts[k][max(len(texts[k - 1]) - len(stop) + 1, 0) :]

    for least in range(13):
        ends = [k for k in range(least + 1, 13) if completes(k)]
        answer = await client.complete(**words, stop=stop, min_tokens=least)
        assert answer["usage"]["completion_tokens"] == (ends[0] if ends else 12)
        assert answer["choices"][0]["finish_reason"] == ("stop" if ends else "length")
        assert text.startswith(answer["choices"][0]["text"])
    # A stop may begin earlier.
    across = "".join(tokens[4:7])
    for least, counts in ((5, True), (6, True), (7, False)):
        answer = await client.complete(**words, stop=across, min_tokens=least)
        assert (answer["usage"]["completion_tokens"] == 7) == counts


async def test_R17_min_tokens_above_max_tokens(client: Client) -> None:
    error = await client.refuse(prompt="a", max_tokens=4, min_tokens=5)
    assert (error["param"], error["code"]) == ("min_tokens", "invalid_value")
    assert error["message"] == ("'min_tokens' (5) must be at most 'max_tokens' (4, as requested).")
    assert (await client.refuse(prompt="a", max_tokens=0, min_tokens=1))["param"] == "min_tokens"
    # Without ``max_tokens`` the bound is the context, less one token of the prompt.
    error = await client.refuse(prompt=[97], min_tokens=256)
    assert error["message"] == (
        "'min_tokens' (256) must be at most 'max_tokens' (255, its default here)."
    )
    await client.complete(prompt="a", max_tokens=4, min_tokens=4)


async def test_R17_top_k_off(client: Client) -> None:
    drawn = [
        await text(client, prompt="a", temperature=1, seed=3, max_tokens=16, **body)
        for body in ({}, {"top_k": 0}, {"top_k": -1}, {"top_k": VOCABULARY * 2}, {"min_p": 0})
    ]
    assert len(set(drawn)) == 1


@pytest.mark.parametrize("name", ["top_kk", "modle", "", "n "])
async def test_R18_unknown_arguments(client: Client, name: str) -> None:
    error = await client.refuse(prompt="a", **{name: 1})
    assert error["message"] == f"Unrecognized request argument supplied: {name}"
    assert error["param"] == name


WRONG: dict[str, list[Any]] = {
    "model": [1, [], {}, True],
    "suffix": [1, [], {}, True],
    "max_tokens": [-1, 1.5, "1", True, [], 2**70],
    "temperature": [-0.1, 2.1, "1", True, [], 1e400],
    "top_p": [-0.1, 1.1, "1", False],
    "n": [0, -1, 129, 1.5, "1", True],
    "best_of": [-1, 21, 1.5, "1", True],
    "stream": [1, "true", []],
    "stream_options": [True, "x", []],
    "logprobs": [-1, 21, 1.5, "1", []],
    "echo": [1, "true", []],
    "stop": [1, {}, True, [1], ["a", None], [["a"]]],
    "presence_penalty": [-2.1, 2.1, "1", True],
    "frequency_penalty": [-2.1, 2.1, "1", True],
    "logit_bias": ["x", [], 1],
    "seed": [1.5, "1", True, 2**64],
    "user": [1, [], {}, "x" * 1025, "a\0b"],
    "top_k": [-2, 1.5, "1", True],
    "min_p": [-0.1, 1.1, "1"],
    "min_tokens": [-1, 1.5, "1"],
    "ignore_eos": [1, "true"],
    "max_completion_tokens": [-1, 1.5, "1", True],
    "repetition_penalty": [0, -1, 101, "1", True],
    "typical_p": [-0.1, 1.1, "1", True],
    "xtc_probability": [-0.1, 1.1, "1"],
    "xtc_threshold": [-0.1, 1.1, "1"],
    "dry_multiplier": [-0.1, 101, "1"],
    "dry_base": [0.5, 101, "1"],
    "dry_allowed_length": [-1, 1.5, "1"],
    "dry_penalty_last_n": [-2, 1.5, "1"],
    "dry_sequence_breakers": ["x", [1], [""], ["x" * 41], ["x"] * 33],
    "allowed_token_ids": [[], [-1], ["1"], [1.5], 1, [2**40], [VOCABULARY]],
    "stop_token_ids": [[-1], ["1"], 1, [VOCABULARY], list(range(129))],
    "include_stop_str_in_output": [1, "true"],
    "skip_special_tokens": [1, "true"],
    "add_special_tokens": [1, "true"],
    "truncate_prompt_tokens": [0, -2, 1.5, "1"],
    "logprob_token_ids": [[-1], ["1"], 1, [VOCABULARY], list(range(129))],
    "prompt_logprobs": [-1, 21, 1.5, True],
    "return_token_ids": [1, "true"],
    "return_tokens_as_token_ids": [1, "true"],
}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
async def test_R19_wrong_types_and_ranges(client: Client, name: str, value: Any) -> None:
    raw = json.dumps({"model": "toy", "prompt": "a", name: value}).replace("Infinity", "1e999")
    reply = await client.post("/v1/completions", raw.encode())
    assert reply.status == 400
    assert reply.error["param"] == name
    assert name in reply.error["message"]
    assert reply.error["code"] in {"invalid_type", "invalid_value"}


async def test_R19_a_number_without_a_fraction_is_an_integer(client: Client) -> None:
    whole = {"max_tokens": 3, "seed": 7, "n": 2, "top_k": 5, "logprobs": 1, "best_of": 2}
    answer = await client.complete(prompt="a", **whole)
    floats = {name: float(value) for name, value in whole.items()}
    assert (await client.complete(prompt="a", **floats))["choices"] == answer["choices"]
    raw = b'{"model": "toy", "prompt": "a", "max_tokens": 3e0, "n": 20E-1, "seed": -0.0}'
    reply = await client.post("/v1/completions", raw)
    assert len(reply.json()["choices"]) == 2


async def test_R19_messages_name_value_and_limit(client: Client) -> None:
    error = await client.refuse(prompt="a", temperature=2.5)
    assert error["message"] == (
        "Invalid value for 'temperature': expected a number from 0 to 2, but got 2.5 instead."
    )
    error = await client.refuse(prompt="a", n=500)
    assert "1 to 128" in error["message"]
    assert "500" in error["message"]


async def test_R19_a_token_id_without_a_fraction_is_one(client: Client) -> None:
    plain = await client.complete(prompt=[97, 98], max_tokens=5, seed=1, n=2)
    raw = b'{"model":"toy","prompt":[97.0,98],"max_tokens":5.0,"seed":1e0,"n":2.0}'
    reply = await client.post("/v1/completions", raw)
    assert reply.json()["choices"] == plain["choices"]


async def test_R19_null_is_the_default(client: Client) -> None:
    plain = await client.complete(prompt="a", max_tokens=5, seed=1)
    nulls = {name: None for name in WRONG if name not in {"model", "max_tokens", "seed"}}
    assert (await client.complete(prompt="a", max_tokens=5, seed=1, **nulls))["choices"] == plain[
        "choices"
    ]


async def test_R2_the_prompts_of_a_request_are_bounded(serve: Callable[..., Client]) -> None:
    client = serve(toy_engine(), limits=Limits(max_prompts=3))
    await client.complete(prompt=["a"] * 3, max_tokens=1)
    error = await client.refuse(prompt=["a"] * 4, max_tokens=1)
    assert error["param"] == "prompt"
    await client.complete(prompt=[1, 2, 3, 4, 5], max_tokens=1)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"prompt": ["a"] * 2048, "n": 128}, "n"),
        ({"prompt": ["a"] * 17, "n": 128}, "n"),
        ({"prompt": ["a"] * 2048, "best_of": 2}, "best_of"),
        ({"prompt": [[1]] * 1025, "n": 2}, "n"),
    ],
)
async def test_R7_the_choices_of_a_request_are_bounded(
    client: Client, asked: dict[str, Any], param: str
) -> None:
    for stream in (False, param == "n"):
        error = await client.refuse(**asked, max_tokens=0, stream=stream)
        assert error["param"] == param
        prompts, each = len(asked["prompt"]), asked.get("n") or asked["best_of"]
        for named in (prompts, each, prompts * each, 2048):
            assert str(named) in error["message"]


async def test_R7_as_many_choices_as_allowed(serve: Callable[..., Client]) -> None:
    client = serve(toy_engine(), limits=Limits(max_choices=8))
    answer = await client.complete(prompt=["a"] * 2, n=4, max_tokens=0)
    assert [choice["index"] for choice in answer["choices"]] == list(range(8))
    assert (await client.refuse(prompt=["a"] * 9, max_tokens=0))["param"] == "prompt"
    assert (await client.refuse(prompt="a", n=9, max_tokens=0))["param"] == "n"


WEIGHTY: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"prompt": "ab" * 60, "n": 128, "echo": True, "logprobs": 5}, "logprobs", ["n 128", "echo"]),
    ({"prompt": ["a" * 200] * 2000, "echo": True, "logprobs": 0}, "logprobs", ["2000 prompts"]),
    ({"prompt": ["\x01" * 200] * 900, "echo": True}, "echo", ["900 prompts"]),
    ({"prompt": "a", "n": 100, "max_tokens": 200, "logprobs": 5}, "logprobs", ["max_tokens 200"]),
    (
        {"prompt": ["a"] * 90, "n": 20, "max_tokens": None, "max_completion_tokens": 200},
        "n",
        ["90 prompts", "n 20", "max_completion_tokens 200"],
    ),
    ({"prompt": ["a"] * 2000, "max_tokens": 200}, "max_tokens", ["2000 prompts"]),
    (
        {"prompt": ["a" * 200] * 50, "prompt_logprobs": 5, "return_token_ids": True},
        "prompt_logprobs",
        ["return_token_ids"],
    ),
    (
        {"prompt": ["a"] * 50, "max_tokens": 200, "logprob_token_ids": [5]},
        "logprob_token_ids",
        ["1 logprob_token_ids"],
    ),
]


@pytest.mark.parametrize(("asked", "param", "causes"), WEIGHTY)
async def test_R7_the_weight_of_an_answer_is_bounded(
    serve: Callable[..., Client], asked: dict[str, Any], param: str, causes: list[str]
) -> None:
    client = serve(toy_engine(), limits=Limits(max_answer_mib=1))
    error = await client.refuse(**{"max_tokens": 0, **asked})
    assert error["param"] == param
    assert all(cause in error["message"] for cause in (*causes, "1 MiB", "max_answer_mib"))
    light = {**asked, "n": 1, "prompt": "a", "max_tokens": 1, "max_completion_tokens": None}
    assert (await client.complete(**light))["choices"]


async def test_R7_the_estimate_is_near_the_answer(serve: Callable[..., Client]) -> None:
    """Half a limit is admitted, and what is admitted is not much over the limit."""
    client = serve(toy_engine(context_tokens=1024), limits=Limits(max_answer_mib=1))
    for asked in ({"echo": True, "logprobs": 5}, {"echo": True, "logprobs": 0}, {"echo": True}):
        sizes = []
        for n in (1, 2, 4, 8, 16, 32, 64, 128):
            body = {"model": "toy", "prompt": "the cat " * 120, "n": n, "max_tokens": 0, **asked}
            reply = await client.post("/v1/completions", body)
            if reply.status == 200:
                sizes.append(len(reply.body))
        assert sizes[-1] < 2 * 2**20
        assert sizes[-1] > 2**20 / 5 or len(sizes) == 8


@pytest.fixture
async def sharing(client: Client) -> Client:
    """A model that shares prefixes. On a GPU that is not batch-invariant it shares none (D1)."""
    health = (await client.get("/health")).json()
    shared = {engine["model"]: engine["prefix_sharing"] for engine in health["engines"]}
    if shared["toy"] == "none":
        pytest.skip("this device shares no prefixes")
    return client


async def test_R17_cache_salt_keeps_prompts_apart(sharing: Client) -> None:
    """Requests share what was computed with requests of their salt alone. No answer changes."""
    prompt = "a salt is no part of an answer"

    async def cached(salt: str | None) -> tuple[int, str]:
        answer = await sharing.complete(
            prompt=prompt, max_tokens=3, temperature=0, cache_salt=salt, logprobs=1
        )
        usage = answer["usage"]["prompt_tokens_details"]
        return usage["cached_tokens"], str(answer["choices"])

    first, again = await cached("one"), await cached("one")
    other, none = await cached("two"), await cached(None)
    # Without a salt a prompt may begin as that of another test.
    assert first[0] == other[0] == 0
    assert again[0] > none[0]
    assert first[1] == again[1] == other[1] == none[1]
    assert (await cached("two"))[0] == again[0]


async def test_R17_scores_have_salts_too(sharing: Client) -> None:
    prompt = "scores of a prompt are kept, each for its salt"
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 2}
    answers = [
        await sharing.complete(**body, cache_salt=salt) for salt in ("x", "x", "y", None, None)
    ]
    cached = [a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in answers]
    assert cached[0] == cached[2] == 0
    assert cached[1] == cached[4] > cached[3]
    assert all(answer["choices"] == answers[0]["choices"] for answer in answers)


@pytest.mark.parametrize("salt", ["", 5, True, ["a"], {}])
async def test_R17_cache_salt_is_a_string_that_is_not_empty(client: Client, salt: object) -> None:
    error = await client.refuse(prompt="a", cache_salt=salt)
    assert error["param"] == "cache_salt"
