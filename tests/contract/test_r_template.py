"""R1: an alias with ``template=chat`` answers instructions. On the toy model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.chat_template import ChatTemplate, TemplateUnusable
from afterword.core.alias import Alias
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.toy import ToyTokenizer, toy_engine
from conftest import make_client
from support.asgi import Client, fold

NAME = "gpt-3.5-turbo-instruct"
TEMPLATE = (
    "{% for message in messages %}\n    {% if message.role == 'user' %}\n<|im_start|>says:"
    "{{ message.content | trim }}<|im_end|> and {% endif %}\n"
    "{% if message.role == 'assistant' %}\n{{ message.content }}<|fim_pad|>{% endif %}\n"
    "{% endfor %}\n{% if add_generation_prompt %} the{% endif %}\n"
)
TOKENIZER = ToyTokenizer()
BEFORE, AFTER = "<|im_start|>says:", "<|im_end|> and  the"


@pytest.fixture
def engine() -> Iterator[BatchingEngine]:
    made = toy_engine()
    tokenizer: Any = made.tokenizer
    tokenizer.chat_template = TEMPLATE
    yield made
    asyncio.run(made.aclose())


@pytest.fixture
def client(engine: BatchingEngine) -> Client:
    return make_client(
        {"toy": engine}, aliases={NAME: Alias("toy", "chat"), "davinci-002": Alias("toy")}
    )


async def test_R1_the_model_reads_the_prompt_in_its_template(client: Client) -> None:
    # The template's end of turn ends a choice under this name only.
    banned = {str(TOKENIZER.pieces.index(b"<|fim_pad|>")): -100}
    body = {"max_tokens": 9, "temperature": 0, "logit_bias": banned}
    answer = await client.complete(model=NAME, prompt="a model", **body)
    whole = await client.complete(prompt=f"{BEFORE}a model{AFTER}", **body)
    assert answer["choices"][0]["text"] == whole["choices"][0]["text"]
    raw = await client.complete(model="davinci-002", prompt="a model", **body)
    assert raw["choices"] == (await client.complete(prompt="a model", **body))["choices"]
    assert raw["choices"] != answer["choices"]


async def test_R1_echo_offsets_usage_and_log_probabilities_are_of_the_callers_prompt(
    client: Client,
) -> None:
    prompt = "\n a model "
    body = {"max_tokens": 5, "temperature": 0, "echo": True, "logprobs": 2}
    answer = await client.complete(model=NAME, prompt=prompt, **body)
    whole = await client.complete(prompt=f"{BEFORE}a model{AFTER}", **body)
    ((choice,), (theirs,)) = answer["choices"], whole["choices"]
    content, before = TOKENIZER.encode("a model"), TOKENIZER.encode(BEFORE)
    assert choice["text"].startswith(prompt)
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"][: len(content)]) == "a model"
    assert logprobs["text_offset"][:2] == [2, 3]
    assert logprobs["text_offset"][len(content)] == len(prompt)
    inside = slice(len(before) + 1, len(before) + len(content))
    assert logprobs["token_logprobs"][0] is None
    assert (
        logprobs["token_logprobs"][1 : len(content)] == theirs["logprobs"]["token_logprobs"][inside]
    )
    assert answer["usage"]["prompt_tokens"] == len(content)
    assert (
        fold(await client.stream(model=NAME, prompt=prompt, **body), usage=False)["choices"]
        == answer["choices"]
    )
    again = await client.complete(model=NAME, prompt=prompt, **body)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] <= len(content)


async def test_R1_names_of_special_tokens_in_a_prompt_are_text(client: Client) -> None:
    answer = await client.complete(model=NAME, prompt="<|im_end|>", max_tokens=0)
    assert answer["usage"]["prompt_tokens"] == len("<|im_end|>")


async def test_R1_the_templates_end_of_turn_ends_a_choice(client: Client) -> None:
    pad = TOKENIZER.pieces.index(b"<|fim_pad|>")
    body = {"prompt": "a", "max_tokens": 5, "logit_bias": {str(pad): 100}, "temperature": 0}
    ended = await client.complete(model=NAME, **body)
    assert ended["choices"][0]["finish_reason"] == "stop"
    assert ended["choices"][0]["text"] == ""
    raw = await client.complete(**body)
    assert raw["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"add_special_tokens": False}, "add_special_tokens"),
    ],
)
async def test_R1_refused_by_name(client: Client, more: dict[str, Any], param: str) -> None:
    error = await client.refuse(**{"model": NAME, "prompt": "a", **more})
    assert error["param"] == param
    assert NAME in error["message"]


async def test_R1_an_empty_prompt_is_an_empty_message(client: Client) -> None:
    banned = {str(TOKENIZER.pieces.index(b"<|fim_pad|>")): -100}
    body = {"max_tokens": 4, "temperature": 0, "logit_bias": banned}
    answer = await client.complete(model=NAME, **body)
    whole = await client.complete(prompt=BEFORE + AFTER, **body)
    assert answer["choices"][0]["text"] == whole["choices"][0]["text"]
    assert answer["usage"]["prompt_tokens"] == 0


async def test_D3_another_meaning_of_a_prompt_is_another_fingerprint(
    engine: BatchingEngine,
) -> None:
    written = {"plain": Alias("toy"), "chat": Alias("toy", "chat")}
    client = make_client({"toy": engine}, aliases=written)
    prints = {}
    for name in ("toy", *written):
        prints[name] = (await client.complete(model=name, max_tokens=1))["system_fingerprint"]
        facts = (await client.get(f"/v1/models/{name}")).json()["afterword"]
        assert facts["system_fingerprint"] == prints[name]
    assert prints["plain"] == prints["toy"] != prints["chat"]


async def test_R1_the_model_list_says_it(client: Client) -> None:
    facts = (await client.get(f"/v1/models/{NAME}")).json()["afterword"]
    assert (facts["template"], facts["alias_of"], facts["suffix"]) == ("chat", "toy", False)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ messages[0].content | upper }}", "changes the text"),
        ("{% for %}", "cannot be read"),
        ("{{ raise_exception('no users here') }}", "no users here"),
        ("{{ messages.__class__.__mro__ }}", "fails"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "fails: maximum recursion depth"),
        ("{{ 'x' * 10 ** 16 }}", "fails: MemoryError"),
        ("{{ messages | dictsort }}", "fails: 'list' object has no attribute 'items'"),
        ("{{ cycler() }}", "fails: at least one item"),
        ("{{ 2 ** 100000 | int }}", "cannot be read: Exceeds the limit"),
        ("{% if 1 %}{% for a in [1] %}" * 40 + "{% endfor %}{% endif %}" * 40, "cannot be read"),
        ("", "has no chat template"),
    ],
)
def test_R1_templates_that_cannot_be_used_are_refused_at_the_start(
    engine: BatchingEngine, source: str, words: str
) -> None:
    tokenizer: Any = engine.tokenizer
    tokenizer.chat_template = source
    with pytest.raises(ValueError, match=words):
        Catalog([ServedModel("toy", engine, 0)], {NAME: Alias("toy", "chat")})


def test_templates_are_rendered_as_by_their_makers() -> None:
    source = (
        "{%- for message in messages %}\n"
        "  {%- if loop.index > 9 %}{% break %}{% endif %}\n"
        "  {{- bos_token + strftime_now('%d %b %Y') + '|' + message['content'] }}\n"
        "{%- endfor %}{{ {'a': '<ü>'} | tojson }}\n"
    )
    framed = ChatTemplate(source, bos="<s>", eos="</s>").frame("hi", 86_400)
    assert (framed.before, framed.after) == ("<s>02 Jan 1970|", '{"a": "<ü>"}')


@pytest.mark.parametrize(
    ("source", "after"),
    [
        ("{% if tools is not none or documents is not none %}T{% endif %}", ""),
        ("{% generation %}{% set a = 'A' %}{{ a }}{% endgeneration %}{{ a }}", "A"),
        ("{{ ['ü'] | tojson(ensure_ascii=true) }}", '["\\u00fc"]'),
    ],
)
def test_templates_find_what_transformers_gives_them(source: str, after: str) -> None:
    template = ChatTemplate("{{ messages[0].content }}" + source, bos="", eos="")
    assert template.frame("hi", 0).after == after


def test_templates_change_nothing_in_the_sandbox() -> None:
    template = ChatTemplate("{{ messages.append(1) }}", bos="", eos="")
    with pytest.raises(TemplateUnusable, match="fails"):
        template.frame("a", 0)


@pytest.mark.parametrize("suffix", ["", "x"])
async def test_F5_a_chat_has_no_place_for_a_middle(client: Client, suffix: str) -> None:
    """Not answered as a chat, where ``prompt`` and ``input_extra`` would be ignored."""
    reply = await client.post(
        "/infill",
        {"model": NAME, "input_prefix": "a", "input_suffix": suffix, "prompt": "b", "n_predict": 2},
    )
    error = reply.json()["error"]
    assert (reply.status, error["param"]) == (400, "input_suffix")
    assert NAME in error["message"]
