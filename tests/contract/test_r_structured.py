"""R17: structured output, on the toy model, which would write anything."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from contract.conftest import BEHIND_AFTERWORD, BEHIND_VLLM, HERE, Lacks
from support.asgi import Client, fold

WAYS = [HERE, *(pytest.param(w, marks=pytest.mark.slow) for w in (BEHIND_AFTERWORD, BEHIND_VLLM))]
pytestmark = pytest.mark.parametrize("client", WAYS, indirect=True)

ORDER = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0, "maximum": 999},
        "state": {"enum": ["open", "paid", "sent"]},
        "lines": {
            "type": "array",
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 4},
                    "gift": {"type": "boolean"},
                },
                "required": ["name", "gift"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["id", "state", "lines"],
    "additionalProperties": False,
}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "order", "schema": ORDER}}


@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": JSON_SCHEMA},
        {"response_format": {"type": "json_object", "schema": ORDER}},
        {"structured_outputs": {"json": ORDER}},
        {"structured_outputs": {"json": json.dumps(ORDER), "disable_fallback": False}},
    ],
)
@pytest.mark.parametrize("temperature", [0, 1])
async def test_R17_json_follows_its_schema(
    client: Client, lacks: Lacks, asked: dict[str, Any], temperature: float
) -> None:
    """Whole and streamed, for several choices, with penalties and log-probabilities."""
    body = {
        "prompt": "an order:", "max_tokens": 200, "temperature": temperature, "seed": 5, "n": 3,
        "presence_penalty": 0.5, **asked,
        # Strings, numbers and the whole come to an end, whatever the model.
        "logit_bias": {str(ord(character)): 6 for character in '",]}'},
    }  # fmt: skip
    if "structured_scores" in lacks:
        error = await client.refuse(**body, logprobs=1)
        assert error["param"] == "logprobs"
        assert (await client.refuse(**body, best_of=4))["param"] == "logprobs"
    else:
        body["logprobs"] = 1
    answer = await client.complete(**body)
    for choice in answer["choices"]:
        assert choice["finish_reason"] == "stop"
        Draft202012Validator(ORDER).validate(json.loads(choice["text"]))
    streamed = fold(await client.stream(**body), usage=False)
    assert streamed["choices"] == answer["choices"]


async def test_R17_a_grammar_does_not_depend_on_drafts_or_the_batch(client: Client) -> None:
    """D1 and D2: a prompt alone and with others; prompt lookup drafts repeating JSON."""
    body = {
        "max_tokens": 120, "seed": 3, "structured_outputs": {"regex": "(ab|cd){20,30}"},
    }  # fmt: skip
    prompts = ["abcdabcdabcd", "x"]
    together = await client.complete(prompt=prompts, **body)
    for i, prompt in enumerate(prompts):
        alone = await client.complete(prompt=prompt, **body)
        assert alone["choices"][0]["text"] == together["choices"][i]["text"]
        assert re.fullmatch("(ab|cd){20,30}", alone["choices"][0]["text"])


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"regex": r"[0-9]{3}-[a-f]{2}"}, r"[0-9]{3}-[a-f]{2}"),
        ({"choice": ["yes", "no", 'it"s']}, r"yes|no|it\"s"),
        ({"grammar": 'start: /[ab]{2}/ "!"'}, r"[ab]{2}!"),
        ({"grammar": 'root ::= ("x" | "yy") "z"\n'}, r"(x|yy)z"),
    ],
)
async def test_R17_other_structures(client: Client, asked: dict[str, Any], pattern: str) -> None:
    answer = await client.complete(
        prompt="a", n=4, seed=1, max_tokens=60, temperature=2, structured_outputs=asked
    )
    for choice in answer["choices"]:
        assert re.fullmatch(pattern, choice["text"]), choice["text"]
        assert choice["finish_reason"] == "stop"


async def test_R17_text_is_no_structure(client: Client) -> None:
    plain = await client.complete(prompt="a", max_tokens=5, seed=1)
    for asked in ({"type": "text"}, None):
        answer = await client.complete(prompt="a", max_tokens=5, seed=1, response_format=asked)
        assert answer["choices"] == plain["choices"]


@pytest.mark.parametrize(
    ("schema", "is_object"),
    [
        ({}, True), (True, True), ("{}", True), ({"properties": {"a": {"const": 5}}}, True),
        ({"required": ["a"]}, True), ({"type": "integer"}, False), ({"enum": [5]}, False),
        ({"anyOf": [{"type": "integer"}]}, False),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}, False),
    ],
)  # fmt: skip
async def test_R17_json_object_is_an_object_unless_its_schema_says_what_else(
    client: Client, lacks: Lacks, schema: Any, is_object: bool
) -> None:
    """The model would rather write a number."""
    body = {"prompt": "x", "max_tokens": 1, "logit_bias": {str(ord("5")): 100}}
    asked = {"type": "json_object", "schema": schema}
    if "structured" in lacks:
        await client.refuse(**body, response_format=asked)
        return
    answer = await client.complete(**body, response_format=asked)
    assert (answer["choices"][0]["text"] == "{") is is_object


WRONG: list[tuple[str, Any]] = [
    ("response_format", {"type": "xml"}),
    ("response_format", {}),
    ("response_format", "json"),
    ("response_format", {"type": "json_schema"}),
    ("response_format", {"type": "json_schema", "json_schema": {"schema": 5}}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": 1, "schema": {}}}),
    ("response_format", {"type": "json_object", "strict": True}),
    ("response_format", {"type": "text", "schema": {}}),
    ("structured_outputs", {}),
    ("structured_outputs", {"json": {}, "regex": "a"}),
    ("structured_outputs", {"json": None}),
    ("structured_outputs", {"json": "{"}),
    ("structured_outputs", {"json": '{"type": "object", "type": "string"}'}),
    ("structured_outputs", {"json": False}),
    ("structured_outputs", {"json": "[" * 50_000}),
    ("structured_outputs", {"json": '{"not":' * 9000}),
    ("structured_outputs", {"regex": "(a"}),
    ("structured_outputs", {"regex": ""}),
    ("structured_outputs", {"choice": []}),
    ("structured_outputs", {"choice": [""]}),
    ("structured_outputs", {"choice": [1]}),
    ("structured_outputs", {"choice": "a"}),
    ("structured_outputs", {"grammar": "start: nothing"}),
    ("structured_outputs", {"grammar": "root ::= ("}),
    ("structured_outputs", {"regex": "a" * 70_000}),
    ("structured_outputs", {"regex": "a", "disable_fallback": True}),
    ("structured_outputs", {"structural_tag": "x"}),
    ("structured_outputs", {"json": {"type": "object", "properties": {"a": {"not": {}}}}}),
    ("structured_outputs", {"json": {"type": "no type"}}),
    ("structured_outputs", {"json": {"type": "integer", "minimum": -(2**63), "maximum": -1e19}}),
    ("structured_outputs", {"json": {"type": "integer", "minimum": 2**53 + 1}}),
    ("structured_outputs", {"json": {"enum": [2**53 + 1]}}),
    ("structured_outputs", {"grammar": 'root ::= "\\'}),
    ("structured_outputs", {"grammar": "other ::= "}),
    ("response_format", {"type": "json_object", "schema": {"type": "no type"}}),
]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("structured_outputs", {"json": " " * 70_000}),
        ("response_format", {"type": "json_object", "schema": " " * 70_000}),
    ],
)
async def test_R17_long_text_is_refused_before_it_is_parsed(
    client: Client, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    """A parser in C holds the interpreter to its end, in whatever thread it runs."""

    def parse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("afterword.completion.structured.repeated_name", parse)
    reply = await client.post("/v1/completions", {"model": "toy", "prompt": "a", name: value})
    assert (reply.status, reply.error["param"]) == (400, name)
    assert "has 70000 bytes" in reply.error["message"]


@pytest.mark.parametrize(("name", "value"), WRONG)
async def test_R17_what_no_grammar_is_made_of(
    client: Client, lacks: Lacks, name: str, value: Any
) -> None:
    error = await client.refuse(prompt="a", max_tokens=1, **{name: value})
    if lacks.way == BEHIND_VLLM and error["param"] is None:
        # vLLM does not name the field in what its grammar backend says.
        return
    # Also where a gateway passes both fields on as ``structured_outputs``.
    assert error["param"].partition(".")[0] == name
    assert len(error["message"]) < 500


async def test_R17_the_schema_true_is_the_empty_one(client: Client) -> None:
    body = {"prompt": "a", "max_tokens": 8, "seed": 1}
    schemas: tuple[object, ...] = ({}, True)
    empty, true = [
        (await client.complete(**body, structured_outputs={"json": schema}))["choices"]
        for schema in schemas
    ]
    assert true == empty
    asked = {"type": "json_schema", "json_schema": {"name": "any", "schema": True}}
    assert (await client.complete(**body, response_format=asked))["choices"] == empty


async def test_R18_an_option_of_vllm_says_its_only_value(client: Client) -> None:
    option = "structured_outputs.disable_any_whitespace"
    error = await client.refuse(
        prompt="a", structured_outputs={"regex": "a", "disable_any_whitespace": True}
    )
    assert error["param"] == option
    assert f"{option}. It is not offered here; its only value is false" in error["message"]


async def test_R17_what_would_go_on_behind_a_grammar_is_refused(client: Client) -> None:
    grammar = {"regex": "a"}
    for other in ({"min_tokens": 1}, {"ignore_eos": True}, {"suffix": "x"}):
        error = await client.refuse(prompt="a", structured_outputs=grammar, **other)
        assert error["param"] == "structured_outputs"
    both = await client.refuse(
        prompt="a", structured_outputs=grammar, response_format={"type": "json_object"}
    )
    assert both["param"] == "structured_outputs"
