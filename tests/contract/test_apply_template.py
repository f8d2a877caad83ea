"""``POST /apply-template``: a conversation as a prompt. On the toy model."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from afterword.core.alias import Alias
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.toy import ToyTokenizer, toy_engine
from conftest import make_client
from support.asgi import Client

TOKENIZER = ToyTokenizer()
PAD = TOKENIZER.pieces.index(b"<|fim_pad|>")
TEMPLATE = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system: a a<|im_end|>' }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) and message.role != 'system' %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + message.role + ':' + message.content }}"
    "{{ '<|fim_pad|>' if message.role == 'assistant' else '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}"
)
START = "<|im_start|>system: a a<|im_end|>"
Serve = Callable[..., Client]


@pytest.fixture
def templated() -> Iterator[Serve]:
    """Makes a server whose model has this template."""
    engines: list[BatchingEngine] = []

    def make(template: str | None = TEMPLATE) -> Client:
        engine = toy_engine()
        engines.append(engine)
        tokenizer: Any = engine.tokenizer
        tokenizer.chat_template = template
        aliases = {"chat": Alias("toy", "chat")} if template == TEMPLATE else {}
        return make_client({"toy": engine}, aliases=aliases)

    yield make
    for engine in engines:
        asyncio.run(engine.aclose())


def said(*contents: str, first: str = "user") -> dict[str, Any]:
    """Returns a body: people take turns."""
    roles = itertools.cycle(["user", "assistant"] if first == "user" else ["assistant", "user"])
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return {"model": "toy", "messages": messages}


async def test_a_conversation_becomes_a_prompt(templated: Serve) -> None:
    reply = await templated().post("/apply-template", said("a", "b\n", " c"))
    prompt = (
        f"{START}<|im_start|>user:a<|im_end|><|im_start|>assistant:b\n<|fim_pad|>"
        "<|im_start|>user: c<|im_end|><|im_start|>assistant:"
    )
    answer = reply.json()
    assert answer["prompt"] == prompt
    # The same letters in the template's own words are not taken for a message.
    places = [prompt.index(f"{role}:{text}") + len(role) + 1
              for role, text in (("user", "a"), ("assistant", "b\n"), ("user", " c"))]  # fmt: skip
    assert answer["offsets"] == places
    # The vocabulary does not end at the token that ends a turn here.
    assert answer["stop_token_ids"] == [PAD]


async def test_a_model_goes_on_with_the_answer_that_has_begun(templated: Serve) -> None:
    client = templated()
    asked = (await client.post("/apply-template", said("a"))).json()
    begun = (await client.post("/apply-template", said("a", "b "))).json()
    assert begun["prompt"] == asked["prompt"] + "b "
    assert begun["offsets"] == [*asked["offsets"], len(asked["prompt"])]
    # Letters, because other tokens are parts of characters here.
    letters = [TOKENIZER.pieces.index(letter.encode()) for letter in "abcdefgh "]
    body = {"temperature": 0, "max_tokens": 6, "allowed_token_ids": letters}
    whole = await client.complete(prompt=asked["prompt"], **body)
    text = whole["choices"][0]["text"]
    assert len(text) == 6
    rest = (await client.post("/apply-template", said("a", text[:2]))).json()
    answer = await client.complete(prompt=rest["prompt"], **{**body, "max_tokens": 4})
    assert text[:2] + answer["choices"][0]["text"] == text


async def test_the_prompt_is_what_an_alias_computes(templated: Serve) -> None:
    """A completion of the rendered prompt says what ``template=chat`` says, exactly."""
    client = templated()
    rendered = (await client.post("/apply-template", said("a model"))).json()
    body = {"max_tokens": 9, "temperature": 0}
    plain = await client.complete(
        prompt=rendered["prompt"], stop_token_ids=rendered["stop_token_ids"], **body
    )
    alias = await client.complete(model="chat", prompt="a model", **body)
    assert plain["choices"] == alias["choices"]
    again = await client.post("/apply-template", {**said("a model"), "model": "chat"})
    assert again.json() == rendered


async def test_a_system_message(templated: Serve) -> None:
    messages = [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]
    reply = await templated().post("/apply-template", {"messages": messages})
    assert reply.json()["prompt"] == "<|im_start|>system:x<|im_end|><|im_start|>assistant:y"


@pytest.mark.parametrize(
    ("template", "contents", "offsets"),
    [
        ("{% for m in messages %}<{{ m.content | trim }}>{% endfor %}", ("a", "b", " c"),
         [1, 4, None]),
        ("{% for m in messages %}<{{ m.content | upper }}>{% endfor %}", ("a",), [None]),
        ("{{ messages[-1].content }}", ("a", "b", "c"), [None, None, None]),
        ("{{ messages[0].content if messages[0].content == 'a' else raise_exception('no') }}",
         ("a",), [None]),
        ("{% for m in messages %}🦜{{ m.content }}{% endfor %}", ("🦜🦜", "b", "c"), [1, 4, 6]),
    ],
)  # fmt: skip
async def test_texts_that_a_template_changes_have_no_place(
    templated: Serve, template: str, contents: tuple[str, ...], offsets: list[int | None]
) -> None:
    answer = (await templated(template).post("/apply-template", said(*contents))).json()
    assert answer["offsets"] == offsets
    for content, offset in zip(contents, offsets, strict=True):
        if offset is not None:
            assert answer["prompt"][offset : offset + len(content)] == content


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "messages", "you must provide a messages parameter"),
        ({"messages": None}, "messages", "you must provide"),
        ({"messages": "a"}, "messages", "a string of 1 character"),
        ({"messages": []}, "messages", "at least 1 message"),
        ({"messages": ["a"]}, "messages[0]", "an object with role and content"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role",
         "one of system, user, assistant"),
        ({"messages": [{"content": "a"}]}, "messages[0].role", "but got null"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role", "an array"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "expected a string"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
         "messages[0].content", "an array of 1 item"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages[0].name",
         "Unrecognized request argument supplied: messages[0].name"),
        ({**said("a"), "tools": []}, "tools", "Unrecognized request argument supplied: tools"),
        (said("a", first="assistant"), "messages", "the chat template fails"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "messages", "Roles must alternate"),
    ],
)  # fmt: skip
async def test_refused_by_name(
    templated: Serve, body: dict[str, Any], param: str, words: str
) -> None:
    reply = await templated().post("/apply-template", body)
    assert reply.status == 400
    assert reply.error["param"] == param
    assert words in reply.error["message"]


@pytest.mark.parametrize("template", [None, "", "{% for %}"])
async def test_a_model_without_a_usable_template_is_refused(
    templated: Serve, template: str | None
) -> None:
    client = templated(template)
    reply = await client.post("/apply-template", said("a"))
    assert (reply.status, reply.error["param"]) == (400, "messages")
    assert "chat template" in reply.error["message"]
    facts = (await client.get("/v1/models/toy")).json()["afterword"]
    assert facts["chat_template"] is bool(template)


async def test_messages_beyond_the_context_are_refused_before_they_are_rendered(
    templated: Serve,
) -> None:
    """A message takes a token at least, so empty ones have a bound, too."""
    client = templated("{% for %}")
    for contents in (("x" * 100_000,), ("",) * 300):
        reply = await client.post("/apply-template", said(*contents))
        assert reply.error["code"] == "context_length_exceeded"


async def test_the_model_list_says_who_has_a_template(templated: Serve) -> None:
    client = templated()
    for name, template in (("toy", None), ("chat", "chat")):
        facts = (await client.get(f"/v1/models/{name}")).json()["afterword"]
        assert (facts["chat_template"], facts["template"]) == (True, template)
    reply = await client.post("/apply-template", {**said("a"), "model": "none"})
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
