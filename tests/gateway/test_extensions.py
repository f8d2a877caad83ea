"""Parameters of R17 behind other servers: what is passed on, read back, or refused by name."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from afterword.core.job import (
    NO_TOKEN,
    Constraint,
    Event,
    Job,
    OutputGrammar,
    Prefilled,
    Repetition,
    Sampled,
    SamplingParams,
)
from afterword.core.limits import Limits
from afterword.engine.toy import ToyTokenizer, toy_engine
from afterword.gateway.address import parse_addresses
from afterword.gateway.dialects.chunks import ChoiceDelta, ChoiceLogprobs
from afterword.gateway.dialects.dialect import UNKNOWN_CONTEXT, Facts, Reader
from afterword.gateway.dialects.grammars import gbnf_of_choices, unusable
from afterword.gateway.dialects.registry import DIALECTS
from afterword.gateway.dialects.stream_reader import add_top
from afterword.gateway.failures import StreamBroke
from afterword.gateway.transport.api import Api
from afterword.gateway.vocabulary import RemoteTokenizer, TextTokenizer
from conftest import make_client
from standins.server import FACTS, VOCABULARY, Exchange, StandIn
from standins.sglang_server import Sglang
from standins.upstreams import Front, engine_of, facts_of, listening, pool_of
from support.asgi import Client

EVERYTHING = Job(
    prompt_ids=(97, 98, 99),
    n=1,
    max_tokens=4,
    seed=1,
    sampling=SamplingParams(
        repetition_penalty=1.5,
        repetition_window=32,
        typical_p=0.9,
        xtc_probability=0.5,
        xtc_threshold=0.2,
        repetition=Repetition(
            multiplier=2, base=1.5, allowed_length=3, window=64, breaker_texts=("\n", ":")
        ),
        allowed_ids=(97, 98),
    ),
    logprobs=0,
    scored_ids=(5, 6),
    stop_ids=(100,),
    constraint=Constraint(OutputGrammar("choice", '["a","b"]')),
)
PIECES = ToyTokenizer().pieces


async def _ids(text: str, parse_special: bool) -> list[int]:
    return ToyTokenizer().encode(text, parse_special=parse_special)


def tokenizer() -> RemoteTokenizer:
    return RemoteTokenizer(VOCABULARY, chat_template=None, encode=_ids)


def body_for(name: str, job: Job, seq: int = 0) -> dict[str, Any]:
    (address,) = parse_addresses(f"{name}+http://127.0.0.1:1/v1")
    (upstream,) = pool_of(f"{name}+http://127.0.0.1:1/v1").upstreams
    assert upstream.api.address == address
    api: Api = upstream.api
    texts = TextTokenizer() if name == "openai" else tokenizer()
    _, body = DIALECTS[name].request(api, job, [seq], FACTS, texts)
    found: dict[str, Any] = json.loads(msgspec.json.encode(body))
    return found


DRY = {
    "dry_multiplier": 2.0, "dry_base": 1.5, "dry_allowed_length": 3, "dry_penalty_last_n": 64,
    "dry_sequence_breakers": ["\n", ":"],
}  # fmt: skip
VLLM = {
    "repetition_penalty": 1.5, "allowed_token_ids": [97, 98], "logprob_token_ids": [5, 6],
    "stop_token_ids": [100], "structured_outputs": {"choice": ["a", "b"]},
}  # fmt: skip
CUTS = {"typical_p": 0.9, "xtc_probability": 0.5, "xtc_threshold": 0.2}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("afterword", {**VLLM, **CUTS, **DRY, "repetition_penalty_range": 32}),
        ("vllm", VLLM),
        ("llamacpp", {
            **CUTS, **DRY, "repeat_penalty": 1.5, "repeat_last_n": 32,
            "grammar": 'root ::= "a" | "b"',
        }),
    ],
)  # fmt: skip
def test_what_is_passed_on(name: str, expected: dict[str, Any]) -> None:
    body = body_for(name, EVERYTHING)
    assert {field: body.get(field) for field in expected} == expected


@pytest.mark.parametrize("window", [0, 256, 2**60])
def test_a_penalty_of_all_tokens_is_one_of_the_whole_context(window: int) -> None:
    sampling = SamplingParams(repetition_penalty=1.5, repetition_window=window)
    job = msgspec.structs.replace(EVERYTHING, sampling=sampling)
    assert body_for("llamacpp", job)["repeat_last_n"] == 256


def test_sglang_has_them_among_its_sampling_params() -> None:
    body = body_for("sglang", EVERYTHING)
    assert body["token_ids_logprob"] == [5, 6]
    assert body["sampling_params"]["stop_token_ids"] == [100]
    for grammar, field in (
        (OutputGrammar("json", '{"type":"string"}'), {"json_schema": '{"type":"string"}'}),
        (OutputGrammar("regex", "a+"), {"regex": "a+"}),
        (OutputGrammar("choice", '["a"]'), {"ebnf": 'root ::= "a"'}),
        (OutputGrammar("grammar", 'root ::= "a"'), {"ebnf": 'root ::= "a"'}),
    ):
        job = msgspec.structs.replace(EVERYTHING, constraint=Constraint(grammar))
        assert body_for("sglang", job)["sampling_params"].items() >= field.items()


DRAWN = SamplingParams(
    temperature=0.5, top_p=0.25, top_k=7, min_p=0.125, logit_bias=((5, -100.0), (6, 2.0))
)
PLAIN = Job(prompt_ids=(97, 98), n=2, max_tokens=5, seed=2**31 + 3, sampling=DRAWN, logprobs=2)


def test_the_whole_body_for_sglang() -> None:
    """Every setting is explicit, because a server's model may bring other defaults."""
    body = body_for("sglang", PLAIN, seq=1)
    common = {"max_new_tokens": 5, "repetition_penalty": 1, "sampling_seed": 4}
    assert body.pop("sampling_params") == common | {
        "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125, "presence_penalty": 0,
        "frequency_penalty": 0, "min_new_tokens": 0, "ignore_eos": False,
        "logit_bias": {"5": -100, "6": 2},
    }  # fmt: skip
    assert body == {
        "input_ids": [97, 98], "stream": True, "return_logprob": True, "top_logprobs_num": 2,
        "logprob_start_len": -1,
    }  # fmt: skip
    scored = body_for("sglang", msgspec.structs.replace(PLAIN, logprobs=1, prompt_logprobs=3))
    assert (scored["top_logprobs_num"], scored["logprob_start_len"]) == (3, 0)
    greedy = SamplingParams(
        temperature=0.5, top_p=0.25, top_k=1, min_p=0.125, presence_penalty=1.5,
        frequency_penalty=-1.5, min_tokens=3, ignore_eos=True,
    )  # fmt: skip
    job = msgspec.structs.replace(PLAIN, sampling=greedy, logprobs=None, cache_scope="a")
    body = body_for("sglang", job, seq=1)
    assert body.pop("sampling_params") == common | {
        "temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "presence_penalty": 1.5,
        "frequency_penalty": -1.5, "min_new_tokens": 3, "ignore_eos": True,
    }  # fmt: skip
    assert body == {"input_ids": [97, 98], "stream": True, "extra_key": "a"}


def test_the_whole_body_for_llama_server() -> None:
    """As for SGLang; -100 bans a token, which other servers take for a large number."""
    body = body_for("llamacpp", PLAIN, seq=1)
    seeds = [body_for("llamacpp", PLAIN)["seed"], body.pop("seed")]
    assert len(set(seeds)) == 2
    assert all(0 <= seed < 2**32 - 1 for seed in seeds)
    assert body == {
        "prompt": [97, 98], "n_predict": 5, "stream": True, "cache_prompt": True,
        "return_tokens": True, "temperature": 0.5, "top_k": 7, "top_p": 0.25, "min_p": 0.125,
        "samplers": ["penalties", "dry", "temperature", "top_k", "top_p", "min_p", "xtc"],
        "typical_p": 1, "xtc_probability": 0, "xtc_threshold": 0.1, "repeat_penalty": 1,
        "repeat_last_n": 256, "dry_multiplier": 0, "logit_bias": [[5, False], [6, 2]],
        "n_probs": 2,
    }  # fmt: skip
    for sampling in (SamplingParams(temperature=0), SamplingParams(top_p=0)):
        greedy = msgspec.structs.replace(PLAIN, sampling=sampling, logprobs=0)
        asked = body_for("llamacpp", greedy)
        assert (asked["temperature"], asked["n_probs"]) == (0, 1)
    assert "n_probs" not in body_for("llamacpp", msgspec.structs.replace(PLAIN, logprobs=None))


def test_the_whole_body_for_a_hosted_endpoint() -> None:
    """It has no field for whose prompts share what was computed, and may refuse unknown ones."""
    sampling = SamplingParams(temperature=0.5, top_p=0.25)
    job = msgspec.structs.replace(PLAIN, prompt_ids=b"ab", sampling=sampling, cache_scope="a")
    assert body_for("openai", job) == {
        "model": "toy", "prompt": "ab", "max_tokens": 5, "n": 1, "stream": True,
        "stream_options": {"include_usage": True}, "temperature": 0.5, "top_p": 0.25,
        "seed": 2**31 + 3, "logprobs": 2,
    }  # fmt: skip
    assert "logprobs" not in body_for("openai", msgspec.structs.replace(job, logprobs=None))


def test_ranks_are_asked_for() -> None:
    job = msgspec.structs.replace(EVERYTHING, prompt_logprobs=3, prompt_ranks=True)
    body = body_for("afterword", job)
    assert (body["echo"], body["logprobs"], body["prompt_logprobs"]) == (True, 3, 0)


def test_llama_server_cuts_typically_only_what_has_a_probability() -> None:
    """Its typical sampling computes 0 * log(0); a tiny ``min_p`` in front takes these away."""
    samplers = body_for("llamacpp", EVERYTHING)["samplers"]
    assert samplers.index("min_p") < samplers.index("typ_p") < samplers.index("top_p")
    greedy = SamplingParams(temperature=0, typical_p=0.5)
    body = body_for("llamacpp", msgspec.structs.replace(EVERYTHING, sampling=greedy))
    assert body["typical_p"] == 1
    assert "typ_p" not in body["samplers"]
    # top_p 0 keeps one of the typical tokens, which need not be the likeliest of all.
    one = SamplingParams(top_p=0, typical_p=0.5)
    body = body_for("llamacpp", msgspec.structs.replace(EVERYTHING, sampling=one))
    assert (body["temperature"], body["typical_p"], body["top_p"]) == (1, 0.5, 0)


# Reading.

PROMPT = (97, 98, 99)
NAMES = [f"token_id:{i}" for i in (*PROMPT, 100, 101)]


def scored_job(**more: Any) -> Job:
    return Job(
        prompt_ids=PROMPT, n=2, max_tokens=2, sampling=SamplingParams(), seed=1, logprobs=1,
        prompt_logprobs=1, scored_ids=(7,), **more,
    )  # fmt: skip


def chunk(
    index: int, start: int, end: int, *, finish: str | None = None, ranks: bool = False
) -> bytes:
    """A chunk with the entries ``start`` to ``end`` of a choice; the prompt's are echoed."""
    values = [None if at == 0 else -float(at) for at in range(start, end)]
    tops = [None if v is None else {"token_id:7": -50.0, "token_id:8": -0.5} for v in values]
    choice: dict[str, Any] = {
        "index": index, "text": "", "finish_reason": finish,
        "logprobs": {"tokens": NAMES[start:end], "token_logprobs": values, "top_logprobs": tops},
    }  # fmt: skip
    if ranks:
        choice["prompt_logprobs"] = [None, {"98": {"rank": 4}}, {"99": {"rank": 5}}]
    return json.dumps({"choices": [choice]}).encode()


def reader_of(job: Job) -> Reader:
    return DIALECTS["afterword"].reader(0, job, [0, 1], tokenizer())


def read(job: Job, size: int) -> list[Event]:
    """All events of two choices whose entries come ``size`` a chunk, one after the other."""
    reader = reader_of(job)
    events: list[Event] = []
    for at in range(0, 5, size):
        for index in (0, 1):
            last = "length" if at + size >= 5 else None
            events += reader.read(
                chunk(index, at, min(at + size, 5), finish=last, ranks=job.prompt_ranks and at == 0)
            )
    return events


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("ranks", [False, True])
def test_an_echo_comes_in_any_number_of_chunks(size: int, ranks: bool) -> None:
    events = read(scored_job(prompt_ranks=ranks), size)
    (prefilled,) = (event for event in events if isinstance(event, Prefilled))
    assert events[0] is prefilled
    scored = prefilled.scored
    assert scored is not None
    assert scored.logprobs.tolist() == [-1.0, -2.0]
    assert scored.top_ids.tolist() == [8, 7, 8, 7]
    assert scored.top_logprobs.tolist() == [-0.5, -50.0] * 2
    assert scored.ranks.tolist() == ([4, 5] if ranks else [])
    for seq in (0, 1):
        sampled = [e for e in events if isinstance(e, Sampled) and e.seq == seq]
        assert [token for event in sampled for token in event.tokens] == [100, 101]
        assert [value for event in sampled for value in event.logprobs] == [-3.0, -4.0]
        assert [token for event in sampled for token in event.top_ids] == [8, 7, 8, 7]


def test_an_echo_that_is_not_whole_is_no_answer() -> None:
    with pytest.raises(StreamBroke, match="did not score the whole prompt"):
        reader_of(scored_job()).read(chunk(0, 0, 2, finish="length"))
    with pytest.raises(StreamBroke, match="did not send the ranks"):
        reader_of(scored_job(prompt_ranks=True)).read(chunk(0, 0, 3))
    other = scored_job(prompt_ranks=True)
    with pytest.raises(StreamBroke, match="did not rank"):
        reader_of(msgspec.structs.replace(other, prompt_ids=(1, 2, 3))).read(
            chunk(0, 0, 3, ranks=True)
        )
    asked = msgspec.structs.replace(scored_job(), scored_ids=(9,))
    with pytest.raises(StreamBroke, match="did not score the tokens"):
        reader_of(asked).read(chunk(0, 0, 3))


@pytest.mark.parametrize("rank", [0, -1, 2**31, 2**63, 2**80, 1e300])
def test_a_rank_that_no_token_has_is_no_answer(rank: float) -> None:
    """And no fault of this server, as an overflow would be."""
    said = chunk(0, 0, 3, ranks=True).replace(b'"rank": 5', b'"rank": %b' % str(rank).encode())
    with pytest.raises(StreamBroke):
        reader_of(scored_job(prompt_ranks=True)).read(said)


def test_scored_ids_stand_behind_the_likeliest() -> None:
    ids, values = array("i"), array("d")
    add_top([(1, -1.0), (2, -2.0), (3, -9.0), (1, -1.0)], 3, (3, 1), ids, values)
    assert ids.tolist() == [1, 2, 3, NO_TOKEN, NO_TOKEN]
    add_top([(4, -4.0)], 0, (4,), ids, values)
    assert ids.tolist()[5:] == [4]
    assert values.tolist() == [-1.0, -2.0, -9.0, 0.0, 0.0, -4.0]


def test_an_afterword_behind_names_what_its_own_server_did_not_report() -> None:
    """Ids are ids; a name without one is text; a last token that ended it writes nothing."""
    known = tokenizer()
    job = scored_job()

    def ids(names: list[str], finish: str | None = None, *, of: Job = job) -> list[int]:
        resolver = DIALECTS["afterword"]._resolver(known, of)  # type: ignore[attr-defined]
        found: list[int] = resolver.ids(
            ChoiceDelta(logprobs=ChoiceLogprobs(tokens=names), finish_reason=finish)
        )
        return found

    assert ids(["token_id:97", "a", "token_id:98"]) == [97, 97, 98]
    (own,) = ids(["bytes:\\xe2\\x80"])
    assert own >= len(known.pieces)
    assert known.pieces[own] == b"\xe2\x80"
    (ended,) = ids(["token_id:100"], "stop")
    assert ended in known.end_ids
    assert known.aliases[ended] == 100
    assert ids(["token_id:100"], "stop", of=EVERYTHING) == [100]
    with pytest.raises(StreamBroke):
        ids([f"token_id:{len(known.pieces)}"])


async def test_answers_show_an_end_token_by_its_own_id(front: Front) -> None:
    """The server ends at a token that it did not declare as an end token."""

    def ends(exchange: Exchange) -> None:
        exchange.begin()
        exchange.tokens([97])
        exchange.tokens([98, 100], "stop")
        exchange.end()

    async with StandIn(ends) as upstream:
        client = make_client({"toy": front(upstream)})
        body: dict[str, Any] = {"prompt": "x", "max_tokens": 9, "return_token_ids": True}
        (choice,) = (await client.complete(**body))["choices"]
        assert (choice["text"], choice["token_ids"]) == ("ab", [97, 98, 100])
        # The client's own stop token is text if it asks for that.
        more = {"stop_token_ids": [100], "include_stop_str_in_output": True}
        (choice,) = (await client.complete(**body, **more))["choices"]
        assert (choice["text"], choice["token_ids"]) == ("abd", [97, 98, 100])


async def test_stop_tokens_end_a_choice_even_if_the_server_goes_on(front: Front) -> None:
    async with StandIn(lambda exchange: exchange.whole([97, 98, 99])) as upstream:
        client = make_client({"toy": front(upstream)})
        answer = await client.complete(
            prompt="x", max_tokens=3, ignore_eos=True, stop_token_ids=[98]
        )
        assert answer["choices"][0]["text"] == "a"
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 2


# Grammars.

TYPED = {"type": "object", "properties": {"a": {"type": ["string", "null"]}}, "title": "T"}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (TYPED, None),
        ({"enum": ["a", 1], "type": ["string", "integer"]}, None),
        ({"anyOf": [{"type": "string"}, {"const": 1}], "description": "either"}, None),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": TYPED}}}, None),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, None),
        (True, "objects only"),
        ({}, "type of each value"),
        ({"type": "number", "multipleOf": 3}, "'multipleOf'"),
        ({"type": "string", "format": "date"}, "'format'"),
        ({"oneOf": [TYPED]}, "'oneOf'"),
        ({"type": "array", "items": {"type": "string", "pattern": "a"}}, "'pattern'"),
        ({"type": "object", "properties": {"x": {"allOf": []}}}, "'allOf'"),
        ({"anyOf": [TYPED], "required": ["a"]}, "next to 'anyOf'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"not": {}}}}, "'not'"),
        ({"type": "object", "additionalProperties": {"minimum": 3}}, "'minimum'"),
    ],
)
def test_schemas_whose_keywords_a_server_would_skip(schema: Any, said: str | None) -> None:
    reason = unusable(OutputGrammar("json", json.dumps(schema)))
    assert reason is None if said is None else reason is not None and said in reason


def test_choices_become_gbnf() -> None:
    choices = ["plain", 'say "x"', "a\\b", "line\nbreak\tand é🙂"]
    grammar = OutputGrammar("choice", json.dumps(choices))
    assert unusable(grammar) is None
    constraint = asyncio.run(_compiled(gbnf_of_choices(grammar)))
    assert constraint.grammar.kind == "grammar"
    control = OutputGrammar("choice", json.dumps(["a\x01"]))
    assert "control characters" in str(unusable(control))
    assert "GBNF" in str(unusable(OutputGrammar("grammar", "start: /a/")))


async def _compiled(gbnf: str) -> Constraint:
    engine = toy_engine()
    try:
        return engine.constraint(OutputGrammar("grammar", gbnf))
    finally:
        await engine.aclose()


@pytest.fixture(scope="module")
def sglang() -> Iterator[tuple[str, list[Facts]]]:
    engine = toy_engine()
    with listening(Sglang(engine, name="toy").app) as base:
        yield f"sglang+{base}", facts_of(f"sglang+{base}")
    asyncio.run(engine.aclose())


async def test_structured_output_behind_sglang(sglang: tuple[str, list[Facts]]) -> None:
    engine = engine_of(*sglang)
    client = make_client({"toy": engine})
    body: dict[str, Any] = {"prompt": "x", "max_tokens": 150, "temperature": 0, "n": 2}
    schema = {
        "type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"], "additionalProperties": False,
    }  # fmt: skip
    asked = {"type": "json_object", "schema": schema}
    for choice in (await client.complete(**body, response_format=asked))["choices"]:
        assert set(json.loads(choice["text"])) == {"a", "b"}
    for grammar, texts in (
        ({"choice": ["yes", "no"]}, {"yes", "no"}), ({"regex": "ab"}, {"ab"}),
        ({"grammar": 'root ::= "z"'}, {"z"}),
    ):  # fmt: skip
        for choice in (await client.complete(**body, structured_outputs=grammar))["choices"]:
            assert choice["text"] in texts
            assert choice["finish_reason"] == "stop"
    unusable_ones: list[dict[str, Any]] = [
        {"json": {"type": "string", "format": "date"}}, {"grammar": "start: /a/"},
    ]  # fmt: skip
    for asked in unusable_ones:
        error = await client.refuse(prompt="x", structured_outputs=asked)
        assert error["param"] == "structured_outputs"
        assert "SGLang" in error["message"]
    error = await client.refuse(prompt="x", structured_outputs={"regex": "a"}, logprobs=1)
    assert error["param"] == "logprobs"
    await engine.aclose()


# What nobody behind can do.


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"repetition_penalty": 1.1, "repetition_penalty_range": 9}, "repetition_penalty"),
        ({"typical_p": 0.5}, "typical_p"),
        ({"xtc_probability": 0.5}, "xtc_probability"),
        ({"dry_multiplier": 1}, "dry_multiplier"),
        ({"allowed_token_ids": [1]}, "allowed_token_ids"),
        ({"stop_token_ids": [1]}, "stop_token_ids"),
        ({"logprob_token_ids": [1]}, "logprob_token_ids"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
    ],
)
async def test_a_hosted_endpoint_gets_none_of_it(body: dict[str, Any], param: str) -> None:
    facts = Facts(model="gpt", context_tokens=UNKNOWN_CONTEXT, max_logprobs=5, identity="x")
    engine = engine_of("openai+http://127.0.0.1:1/v1", [facts])
    client: Client = make_client({"toy": engine}, limits=Limits())
    error = await client.refuse(prompt="a", max_tokens=3, **body)
    assert error["param"] == param
    assert "endpoint" in error["message"]
    await engine.aclose()
