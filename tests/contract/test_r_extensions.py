"""R17 to R20: parameters with the names of other servers, and fields that ask for nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from afterword.engine.toy import ToyTokenizer, toy_engine
from contract.conftest import Lacks
from support.asgi import Client, fold

TOKENIZER = ToyTokenizer()
PIECES = TOKENIZER.pieces
END = sorted(TOKENIZER.end_ids)
NO_END = {str(i): -100 for i in END}
A, B, C = 97, 98, 99
HERE = pytest.mark.parametrize("serve", ["here"], indirect=True)


async def choice_of(client: Client, **body: Any) -> dict[str, Any]:
    answer = await client.complete(**{"temperature": 0, "max_tokens": 8, **body})
    (choice,) = answer["choices"]
    found: dict[str, Any] = choice
    return found


async def test_R17_max_completion_tokens_is_another_name(client: Client) -> None:
    short = await client.complete(
        prompt="a", max_completion_tokens=3, temperature=0, logit_bias=NO_END
    )
    assert short["usage"]["completion_tokens"] == 3
    error = await client.refuse(prompt="a", max_tokens=3, max_completion_tokens=3)
    assert error["param"] == "max_completion_tokens"
    error = await client.refuse(prompt="a", max_completion_tokens=3, min_tokens=4)
    assert error["param"] == "min_tokens"
    assert "'max_completion_tokens' (3, as requested)" in error["message"]


async def refused(client: Client, param: str, **body: Any) -> None:
    """The server behind cannot honour it, and the answer says so."""
    error = await client.refuse(**{"prompt": "a", "max_tokens": 1, **body})
    assert error["param"] == param
    assert "cannot be honoured" in error["message"]


async def test_R17_repetition_penalty_sees_the_prompt(client: Client, lacks: Lacks) -> None:
    """Everything that prompt and choice have becomes unlikely; the rest is drawn."""
    body = {
        "prompt": "abcabc", "max_tokens": 24, "repetition_penalty": 100, "return_token_ids": True,
        "logit_bias": {**NO_END, **{str(i): 30 for i in (A, B, C, 100, 101)}}, "ignore_eos": True,
    }  # fmt: skip
    if "repetition_penalty" in lacks:
        await refused(client, "repetition_penalty", **body)
        return
    choice = await choice_of(client, **body)
    # Raised tokens are positive, so the penalty divides them by a hundred once they are there.
    assert choice["token_ids"][:2] != choice["token_ids"][2:4]
    assert set(choice["token_ids"][:2]) == {100, 101}


async def test_R17_dry_ends_a_loop(client: Client, lacks: Lacks) -> None:
    loop = {str(i): 100 for i in (A, B)}
    alone = {"prompt": "ab" * 8, "max_tokens": 6, "logit_bias": loop}
    if "dry" in lacks:
        await refused(client, "dry_multiplier", **alone, dry_multiplier=50)
        return
    free = await choice_of(client, **alone)
    dry = await choice_of(client, **alone, dry_multiplier=50, dry_sequence_breakers=[])
    broken = await choice_of(client, **alone, dry_multiplier=50, dry_sequence_breakers=["b"])
    assert broken["text"] == free["text"] or "ab" not in broken["text"]
    assert "abab" not in dry["text"]
    # A breaker of several tokens.
    long = await choice_of(client, **alone, dry_multiplier=50, dry_sequence_breakers=["b\nUser:"])
    assert long["text"] == dry["text"]


async def test_R17_typical_p_and_xtc(client: Client, lacks: Lacks) -> None:
    """Of three tokens one is left, so the seed changes nothing."""
    body: dict[str, Any] = {
        "prompt": "x", "max_tokens": 40, "temperature": 1, "ignore_eos": True,
        "logit_bias": {str(i): 90 for i in (A, B, C)},
    }  # fmt: skip

    async def texts(**more: Any) -> set[str]:
        answers = [await client.complete(**body, **more, seed=seed) for seed in (1, 2, 3)]
        return {answer["choices"][0]["text"] for answer in answers}

    assert len(await texts()) == 3
    for more in ({"typical_p": 1e-6}, {"xtc_probability": 1, "xtc_threshold": 1e-6}):
        if "xtc" in lacks:
            await refused(client, next(iter(more)), **body, **more)
        else:
            assert len(await texts(**more)) == 1


async def test_R17_allowed_token_ids(client: Client, lacks: Lacks) -> None:
    body = {"prompt": "x", "allowed_token_ids": [A, B], "temperature": 2, "seed": 4}
    if "allowed_ids" in lacks:
        await refused(client, "allowed_token_ids", **body)
        return
    choice = await choice_of(client, **body, max_tokens=40)
    assert set(choice["text"]) == {"a", "b"}
    error = await client.refuse(
        prompt="a", allowed_token_ids=[A, B], logit_bias={"97": -100, "98": -100}
    )
    assert error["param"] == "allowed_token_ids"
    for ends in ({"allowed_token_ids": END}, {"allowed_token_ids": [A], "stop_token_ids": [A]}):
        error = await client.refuse(prompt="a", max_tokens=3, min_tokens=1, **ends)
        assert error["param"] == "allowed_token_ids"


SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"const": "ab"}}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"structured_outputs": {"regex": "ab"}, "logit_bias": {"98": -100}},
         ["logit_bias", "structured_outputs"]),
        ({"structured_outputs": {"regex": "ab"}, "allowed_token_ids": [A]},
         ["allowed_token_ids", "structured_outputs"]),
        ({"response_format": SCHEMA, "logit_bias": {"98": -100}},
         ["logit_bias", "response_format"]),
    ],
)  # fmt: skip
async def test_R17_a_request_that_leaves_no_token_is_at_fault(
    serve: Callable[..., Client], stream: bool, fields: dict[str, Any], named: list[str]
) -> None:
    """Which tokens a grammar wants is known only as it goes. To try again would not help."""
    body = {"model": "toy", "prompt": "a", "max_tokens": 9, "stream": stream, **fields}
    client = serve(toy_engine())
    reply = await client.post("/v1/completions", body)
    assert reply.status == (200 if stream else 400)
    # A stream may have begun with the text before.
    *_, last = reply.body.strip().split(b"data: ")
    error = json.loads(last)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == named[0]
    names = " and ".join(f"'{name}'" for name in named)
    assert error["message"] == f"No token could be drawn: {names} leave none."


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("bans", "named"),
    [
        ({"structured_outputs": {"regex": "ab"}, "logit_bias": {"97": -100, "98": 5}},
         "'logit_bias' and 'structured_outputs' leave"),
        ({"structured_outputs": {"regex": "ab"}, "allowed_token_ids": [B, C],
          "logit_bias": {"98": 5}},
         "'allowed_token_ids' and 'structured_outputs' leave"),
        ({"min_tokens": 1,
          "logit_bias": {str(i): -100 for i in range(len(PIECES)) if i not in END}},
         "'logit_bias' and 'min_tokens' leave"),
        ({"stop_token_ids": [A], "min_tokens": 1,
          "logit_bias": {str(i): -100 for i in range(len(PIECES)) if i != A}},
         "'logit_bias' and 'min_tokens' leave"),
        ({"structured_outputs": {"regex": "ab"}, "allowed_token_ids": [A, B],
          "logit_bias": {"97": -100}},
         "'allowed_token_ids', 'logit_bias' and 'structured_outputs' leave"),
    ],
)  # fmt: skip
async def test_S6_a_request_that_leaves_no_first_token_is_refused_before_it_costs(
    serve: Callable[..., Client], stream: bool, bans: dict[str, Any], named: str
) -> None:
    engine = toy_engine()
    body = {"model": "toy", "prompt": ["a", "b"], "max_tokens": 5, "stream": stream, **bans}
    reply = await serve(engine).post("/v1/completions", body)
    assert reply.status == 400
    assert reply.error["message"] == f"No token could be drawn: {named} none."
    assert reply.error["param"] == named.split("'")[1]
    assert engine.stats().started_requests == 0


@pytest.mark.parametrize(
    "body",
    [{"max_tokens": 0, "logit_bias": {"97": -100}}, {"max_tokens": 1, "allowed_token_ids": [A]}],
)
async def test_R17_a_grammar_whose_first_token_is_not_wanted_or_not_banned_is_fine(
    serve: Callable[..., Client], body: dict[str, Any]
) -> None:
    grammar = {"model": "toy", "prompt": "a", "structured_outputs": {"regex": "ab"}}
    reply = await serve(toy_engine()).post("/v1/completions", {**grammar, **body})
    assert reply.status == 200


async def test_R17_stop_token_ids(client: Client) -> None:
    """They end a choice, whatever ignore_eos says, and write no text unless it is asked for."""
    forced = {"prompt": "x", "logit_bias": {"98": 100}, "ignore_eos": True, "logprobs": 0}
    choice = await choice_of(client, **forced, stop_token_ids=[B])
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    assert choice["logprobs"]["tokens"] == ["b"]
    shown = await choice_of(client, **forced, stop_token_ids=[B], include_stop_str_in_output=True)
    assert (shown["text"], shown["finish_reason"]) == ("b", "stop")
    later = await choice_of(client, **forced, stop_token_ids=[B], min_tokens=2)
    assert "b" not in later["text"]
    assert len(later["logprobs"]["tokens"]) == 3


async def test_R17_include_stop_str_in_output(client: Client) -> None:
    whole = (await choice_of(client, prompt="a", max_tokens=20, logit_bias=NO_END))["text"]
    stop = whole[4:6]
    at = whole.find(stop)
    for include, end in ((False, at), (True, at + 2)):
        choice = await choice_of(
            client, prompt="a", max_tokens=20, stop=stop, logit_bias=NO_END,
            include_stop_str_in_output=include,
        )  # fmt: skip
        assert choice["text"] == whole[:end]
        assert choice["finish_reason"] == "stop"


async def test_R17_skip_special_tokens(client: Client) -> None:
    """A control token that ends nothing writes its name, or nothing; its entry stays."""
    special = min(TOKENIZER.special_ids - TOKENIZER.end_ids)
    name = PIECES[special].decode()
    forced = {"prompt": "x", "logit_bias": {str(special): 100}, "max_tokens": 2, "logprobs": 0}
    assert (await choice_of(client, **forced))["text"] == 2 * name
    skipped = await choice_of(client, **forced, skip_special_tokens=True)
    assert skipped["text"] == ""
    assert skipped["logprobs"]["tokens"] == [name, name]
    assert (await choice_of(client, **forced, skip_special_tokens=True, stop=name))[
        "finish_reason"
    ] == "length"


async def test_R17_add_special_tokens(client: Client) -> None:
    counts = [
        (await client.complete(model="toy-bos", prompt="abc", max_tokens=0, **more))["usage"][
            "prompt_tokens"
        ]
        for more in ({}, {"add_special_tokens": True}, {"add_special_tokens": False})
    ]
    assert counts[0] == counts[1] == counts[2] + 1


async def test_R17_add_special_tokens_with_a_suffix(client: Client) -> None:
    """The tokens of the layout stay; they are not of the prompt."""
    body = {"prompt": "abc", "suffix": "d", "max_tokens": 0}
    whole = await client.complete(model="toy-bos", **body)
    bare = await client.complete(model="toy-bos", **body, add_special_tokens=False)
    other = await client.complete(model="toy", **body)
    assert whole["usage"]["prompt_tokens"] == bare["usage"]["prompt_tokens"] + 1
    assert bare["usage"]["prompt_tokens"] == other["usage"]["prompt_tokens"]


@pytest.mark.parametrize("kept", [1, 2, 5])
async def test_R17_truncate_prompt_tokens_with_a_suffix(client: Client, kept: int) -> None:
    """The suffix and the tokens around it are no part of what is cut."""
    ids = list(b"abcdef")
    fields = {"suffix": "xyz", "max_tokens": 3, "seed": 1, "echo": True}
    whole = await client.complete(prompt=ids[-kept:], **fields)
    cut = await client.complete(prompt=ids, truncate_prompt_tokens=kept, **fields)
    assert cut["choices"] == whole["choices"]
    assert cut["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    # What fits is what fits beside them. The toy's context has 256 tokens.
    most = await client.complete(
        prompt=ids * 50, suffix="xyz", truncate_prompt_tokens=-1, max_tokens=6, seed=1
    )
    assert 245 <= most["usage"]["prompt_tokens"] <= 250


async def test_R17_truncate_prompt_tokens(client: Client) -> None:
    """The last k tokens; a BOS that the server adds is one of them."""
    ids = [i % 200 for i in range(300)]
    for model in ("toy", "toy-bos"):
        answer = await client.complete(
            model=model, prompt=ids, truncate_prompt_tokens=5, max_tokens=3, seed=1
        )
        expected = await client.complete(model=model, prompt=ids[-5:], max_tokens=3, seed=1)
        assert answer["choices"] == expected["choices"]
        assert answer["usage"]["prompt_tokens"] == 5
    text = await client.complete(
        model="toy-bos", prompt="abcdef", truncate_prompt_tokens=3, max_tokens=0, echo=True
    )
    assert text["usage"]["prompt_tokens"] == 3
    assert len(text["choices"][0]["text"]) < 6
    assert "abcdef".endswith(text["choices"][0]["text"])
    fits = await client.complete(prompt=ids, truncate_prompt_tokens=-1, max_tokens=6, seed=1)
    assert fits["usage"]["prompt_tokens"] == 250
    whole = await client.complete(prompt="abc", truncate_prompt_tokens=100, max_tokens=2, seed=1)
    assert (
        whole["choices"] == (await client.complete(prompt="abc", max_tokens=2, seed=1))["choices"]
    )
    assert (await client.refuse(prompt=ids, max_tokens=6))["code"] == "context_length_exceeded"


async def test_R17_logprob_token_ids(client: Client, lacks: Lacks) -> None:
    """The same values as among the likeliest, at each position, generated and echoed."""
    body: dict[str, Any] = {"prompt": "hello", "max_tokens": 4, "logit_bias": NO_END}
    if "scored_ids_and_top" in lacks:
        for more in ({"echo": True}, {"logprobs": 2}, {"prompt_logprobs": 1}):
            param = "prompt_logprobs" if "prompt_logprobs" in more else "logprob_token_ids"
            await refused(client, param, **body, **more, logprob_token_ids=[A, B])
        full = (await choice_of(client, **body, logprobs=20))["logprobs"]
        alone = (await choice_of(client, **body, logprob_token_ids=[A, B]))["logprobs"]
        assert alone["tokens"] == full["tokens"]
        for only, many in zip(alone["top_logprobs"], full["top_logprobs"], strict=True):
            assert {"a", "b"} <= set(only)
            for name in set(only) & set(many):
                assert math.isclose(only[name], many[name], abs_tol=1e-6)
        return
    body["echo"] = True
    full = (await choice_of(client, **body, logprobs=20))["logprobs"]
    some = (await choice_of(client, **body, logprobs=2, logprob_token_ids=[A, B]))["logprobs"]
    alone = (await choice_of(client, **body, logprob_token_ids=[A, B]))["logprobs"]
    assert some["tokens"] == alone["tokens"] == full["tokens"]
    assert some["top_logprobs"][0] is None
    for few, only, many in zip(
        some["top_logprobs"][1:], alone["top_logprobs"][1:], full["top_logprobs"][1:], strict=True
    ):
        assert {"a", "b"} <= set(few)
        assert {"a", "b"} <= set(only)
        assert 2 <= len(few) <= 5
        for name, value in few.items():
            if name in many:
                assert math.isclose(value, many[name], abs_tol=1e-6)
            else:
                assert value <= sorted(many.values(), reverse=True)[19]


async def test_R17_logprob_token_ids_beside_prompt_logprobs(client: Client, lacks: Lacks) -> None:
    """An id that is among the likeliest ones of ``prompt_logprobs`` only is shown all the same."""
    if "scored_ids_and_top" in lacks or "ranks" in lacks:
        return
    body = {"prompt": "hello", "max_tokens": 0, "echo": True, "prompt_logprobs": 5}
    ids = [int(token) for token in (await choice_of(client, **body))["prompt_logprobs"][1]]
    for k in (0, 2, 5):
        shown = await choice_of(
            client, **body, logprobs=k, logprob_token_ids=ids, return_tokens_as_token_ids=True
        )
        assert {f"token_id:{i}" for i in ids} <= set(shown["logprobs"]["top_logprobs"][1])


async def test_R17_prompt_logprobs(client: Client, lacks: Lacks) -> None:
    """vLLM's shape: ids as keys, ranks, the whole prompt with its BOS, null for the first."""
    if "ranks" in lacks:
        await refused(client, "prompt_logprobs", prompt_logprobs=2)
        return
    for model, added in (("toy", 0), ("toy-bos", 1)):
        body = {"model": model, "prompt": "hello there", "max_tokens": 1, "temperature": 0}
        answer = await client.complete(**body, prompt_logprobs=2, return_token_ids=True)
        (choice,) = answer["choices"]
        entries, ids = choice["prompt_logprobs"], choice["prompt_token_ids"]
        assert len(entries) == len(ids) == answer["usage"]["prompt_tokens"]
        assert entries[0] is None
        echoed = (await choice_of(client, **{**body, "echo": True, "logprobs": 20}))["logprobs"]
        for at, (token, entry) in enumerate(zip(ids[1:], entries[1:], strict=True), 1):
            own = entry[str(token)]
            assert own["decoded_token"].encode() == PIECES[token]
            top = sorted(entry.values(), key=lambda one: one["rank"])[:2]
            assert [one["rank"] for one in top] == [1, 2]
            assert top[0]["logprob"] >= top[1]["logprob"]
            assert 2 <= len(entry) <= 3
            if at > added:
                likeliest = sorted(echoed["top_logprobs"][at - added].values(), reverse=True)
                value = echoed["token_logprobs"][at - added]
                assert math.isclose(own["logprob"], value, abs_tol=1e-6)
                if own["rank"] <= 20:
                    assert math.isclose(likeliest[own["rank"] - 1], value, abs_tol=1e-6)
    streamed = fold(await client.stream(**body, prompt_logprobs=2), usage=False)
    assert streamed["choices"][0]["prompt_logprobs"] == entries
    # A prompt of one token has nothing to rank.
    for prompt in ("", "a", [97]):
        choice = await choice_of(client, prompt=prompt, prompt_logprobs=2)
        assert choice["prompt_logprobs"] == [None]


async def test_L3_R17_an_echo_beside_prompt_logprobs(client: Client, lacks: Lacks) -> None:
    """Each shows as many entries as alone, whichever asks for more."""
    if "ranks" in lacks:
        return
    body = {"prompt": "hello there", "max_tokens": 2, "temperature": 0}
    for k, ranked in ((0, 5), (2, 5), (5, 2)):
        echo = {"echo": True, "logprobs": k}
        both = await choice_of(client, **body, **echo, prompt_logprobs=ranked)
        assert both["logprobs"] == (await choice_of(client, **body, **echo))["logprobs"]
        alone = await choice_of(client, **body, prompt_logprobs=ranked)
        assert both["prompt_logprobs"] == alone["prompt_logprobs"]


async def test_R17_token_ids(client: Client) -> None:
    bos = ToyTokenizer(adds_bos=True).bos_id
    body = {"model": "toy-bos", "prompt": "ab", "max_tokens": 6, "seed": 1, "n": 2}
    answer = await client.complete(**body, return_token_ids=True, logprobs=1)
    streamed = await client.stream(**body, return_token_ids=True, logprobs=1)
    assert fold(streamed, usage=False)["choices"] == answer["choices"]
    for choice in answer["choices"]:
        assert choice["prompt_token_ids"] == [bos, A, B]
        names = [PIECES[i] for i in choice["token_ids"]]
        assert len(names) == len(choice["logprobs"]["tokens"])
    named = await client.complete(
        **body, return_token_ids=True, logprobs=1, return_tokens_as_token_ids=True
    )
    for choice in named["choices"]:
        assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in choice["token_ids"]]
        assert all(
            key.startswith("token_id:") for top in choice["logprobs"]["top_logprobs"] for key in top
        )
    bare = await client.complete(**body)
    assert set(bare["choices"][0]) == {"text", "index", "logprobs", "finish_reason"}


NEUTRAL: dict[str, list[Any]] = {
    "use_beam_search": [False],
    "length_penalty": [1, 1.0],
    "early_stopping": [False],
    "spaces_between_special_tokens": [True, False],
    "repetition_penalty_range": [0, 256, -1],
    "typical": [1],
    "tfs": [1],
    "top_a": [0, 0.0],
    "mirostat": [0],
    "mirostat_mode": [0],
    "mirostat_tau": [5, 0.1],
    "mirostat_eta": [0.1],
    "dynatemp_range": [0],
    "smoothing_factor": [0],
    "top_n_sigma": [-1],
    "penalize_nl": [False],
    "ban_eos_token": [False],
    "priority": [0],
    "n_probs": [0],
    "cache_prompt": [True],
    "guided_json": [],
    "guided_regex": [],
    "lora": [[]],
    "metadata": [{}],
    "truncation_side": ["left"],
    "detokenize": [True],
    "cfg_scale": [1, 1.0],
    "context_length_exceeded_behavior": ["error"],
    "provider": [
        {},
        {"require_parameters": True},
        {"allow_fallbacks": False, "order": [], "sort": None},
    ],
    "transforms": [[]],
    "tools": [[]],
    "tool_choice": ["none"],
    "modalities": [["text"]],
    "store": [False],
    "service_tier": ["auto"],
    "top_logprobs": [],
    "safety_model": [],
}


async def test_R20_neutral_values_ask_for_nothing(client: Client) -> None:
    plain = await client.complete(prompt="a", max_tokens=5, seed=1)
    for name, values in NEUTRAL.items():
        for value in [*values, None]:
            answer = await client.complete(prompt="a", max_tokens=5, seed=1, **{name: value})
            assert answer["choices"] == plain["choices"], name


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("use_beam_search", True, "false"), ("length_penalty", 2, "1"), ("top_a", 0.5, "0"),
     ("penalize_nl", True, "false"), ("priority", True, "0"), ("cache_prompt", 1, "true"),
     ("guided_json", {}, "null"), ("top_logprobs", 5, "logprobs"), ("tools", [{}], "tools"),
     ("provider", {"order": ["x"]}, "require_parameters true or false"),
     ("provider", {"unknown": None}, "an object of"), ("provider", [], "an object of"),
     ("provider", {"require_parameters": 1}, "an object of"), ("transforms", ["a"], "[]"),
     ("spaces_between_special_tokens", 1, "true or false"),
     ("max_new_tokens", 10, "text-generation-webui"), ("max_length", 10, "KoboldAI"),
     ("options", {}, "Ollama"), ("parameters", {}, "text-generation-inference"),
     ("n_predict", 10, "llama-server"), ("messages", [], "/v1/chat/completions")],
)  # fmt: skip
async def test_R18_a_known_field_says_what_it_may_be(
    client: Client, name: str, value: Any, said: str
) -> None:
    error = await client.refuse(prompt="a", max_tokens=1, **{name: value})
    assert error["param"] == name
    assert name in error["message"]
    assert said in error["message"]


async def test_R18_camel_case_beside_the_same_value(client: Client) -> None:
    """Some libraries send an option under both names (R18)."""
    bias = {"98": 5.0}
    body = {"prompt": "a", "max_tokens": 5, "seed": 1, "logit_bias": bias}
    plain = await client.complete(**body)
    for more in ({"logitBias": bias}, {"logitBias": None}, {"maxTokens": 5}):
        answer = await client.complete(**body, **more)
        assert answer["choices"] == plain["choices"]
    for name, value, twin in (
        ("logitBias", {"98": 6}, "logit_bias"),
        ("topP", 0.5, "top_p"),
        ("maxTokens", True, "max_tokens"),
    ):
        error = await client.refuse(**body, **{name: value})
        assert error["param"] == name
        assert f"Its name is {twin}." in error["message"]
    error = await client.refuse(**body, unknownName=1)
    assert error["message"] == "Unrecognized request argument supplied: unknownName"


async def test_R17_the_range_of_the_repetition_penalty(client: Client, lacks: Lacks) -> None:
    """With a range the penalty sees the end of the prompt alone."""
    body = {"prompt": "a" + "c" * 9, "max_tokens": 1, "repetition_penalty": 100}
    bias = {**NO_END, str(A): 90, str(B): 50}
    if "penalty_range" in lacks:
        error = await client.refuse(**body, repetition_penalty_range=9)
        assert error["param"].startswith("repetition_penalty")
        return
    for given, text in ((None, "b"), (0, "b"), (-1, "b"), (10, "b"), (2**60, "b"), (9, "a")):
        choice = await choice_of(client, **body, logit_bias=bias, repetition_penalty_range=given)
        assert choice["text"] == text, given


async def test_S9_one_token_a_chunk(client: Client) -> None:
    """With log-probabilities; the echoed prompt, too. Texts and entries belong together."""
    for echo in (False, True):
        chunks = await client.stream(
            prompt="hello", max_tokens=6, logprobs=2, echo=echo, temperature=0, logit_bias=NO_END
        )
        entries = [chunk["choices"][0]["logprobs"]["tokens"] for chunk in chunks]
        assert all(len(tokens) <= 1 for tokens in entries)
        assert sum(map(len, entries)) >= 6
        if echo:
            assert chunks[0]["choices"][0]["text"] == entries[0][0]


async def test_S10_continuous_usage_stats(client: Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await client.stream(
        prompt=["ab", "abcd"], n=2, max_tokens=5, seed=1, stream_options=options, logit_bias=NO_END
    )
    *parts, last = chunks
    seen: dict[int, int] = {}
    for chunk in parts:
        index, usage = chunk["choices"][0]["index"], chunk["usage"]
        assert usage["completion_tokens"] >= seen.get(index, 0)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        seen[index] = usage["completion_tokens"]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == sum(seen.values()) == 20
    error = await client.refuse(
        prompt="a", stream=True, stream_options={"continuous_usage_stats": True}
    )
    assert error["param"] == "stream_options"
