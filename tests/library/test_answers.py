"""The library's answers are the server's, and so are its refusals."""

from __future__ import annotations

import math
import socket
from datetime import date
from typing import Any, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings

from afterword import LLM, ApiError, ConfigError, InvalidRequest, TextChunk, TextCompletion
from afterword.completion.request import CompletionRequest
from afterword.core import wire
from afterword.core.alias import Alias
from afterword.core.errors import AuthenticationFailed, ModelNotFound, RateLimited, UpstreamFailed
from afterword.library.answers import TextChoice
from afterword.library.fields import CompletionFields
from afterword.library.remote import error_of
from properties.requests import bodies
from support.asgi import Client, fold
from support.examples import examples
from support.library import comparable, served


def test_fields_are_those_of_the_contract() -> None:
    named = set(get_type_hints(CompletionFields))
    assert named == set(CompletionRequest.__struct_fields__) - {"prompt", "stream"}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(TextCompletion, wire.Completion), (TextChunk, wire.Chunk), (TextChoice, wire.Choice)],
)
def test_answers_have_the_fields_of_the_wire(
    ours: type[msgspec.Struct], theirs: type[msgspec.Struct]
) -> None:
    assert set(ours.__struct_fields__) == set(theirs.__struct_fields__)


@given(body=bodies(greedy=False))
@settings(max_examples=examples(60), deadline=None)
async def test_an_answer_is_the_servers_bit_for_bit(
    client: Client, llm: LLM, remote: LLM, body: dict[str, Any]
) -> None:
    wanted = comparable(read(await client.complete(**body)))
    assert comparable(llm.complete(**body)) == wanted
    assert comparable(remote.complete(**body)) == wanted


@given(body=bodies(greedy=False))
@settings(max_examples=examples(30), deadline=None)
async def test_a_stream_is_the_answer(
    llm: LLM, remote: LLM, body: dict[str, Any]
) -> None:  # fmt: skip
    wanted = comparable(llm.complete(**body))
    for model in (llm, remote):
        with model.stream(**body, stream_options={"include_usage": True}) as stream:
            chunks = [plain(chunk) for chunk in stream]
        whole = fold(chunks, usage=True)
        assert comparable(read(whole)) == wanted


def read(answer: dict[str, Any]) -> TextCompletion:
    """An answer from the wire."""
    return msgspec.json.decode(msgspec.json.encode(answer), type=TextCompletion)


def plain(chunk: TextChunk) -> dict[str, Any]:
    """A chunk as it is on the wire."""
    made: dict[str, Any] = msgspec.to_builtins(chunk)
    for choice in made["choices"]:
        for name in ("token_ids", "prompt_token_ids", "prompt_logprobs"):
            if choice[name] is None:
                del choice[name]
    return made


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a", "temperature": 3},
        {"prompt": "a", "best_of": 1, "n": 2},
        {"prompt": [], "max_tokens": 1},
        {"prompt": "a", "no_such_field": 1},
        {"prompt": "a" * 300},
        {"prompt": "a", "model": "other"},
        {"prompt": "a", "max_tokens": 16.5},
        {"prompt": "a", "suffix": "b", "echo": True, "logprobs": 1},
    ],
)
async def test_refusals_are_the_servers(
    client: Client, either: LLM, body: dict[str, Any]
) -> None:  # fmt: skip
    reply = await client.post("/v1/completions", {"model": "toy", **body})
    for ask in (either.complete, either.stream):
        with pytest.raises(ApiError) as refused:
            ask(**body)
        error = refused.value
        assert error.status == reply.status
        said = {"message": error.message, "param": error.param, "code": error.code}
        assert said == {name: reply.error[name] for name in said}


def test_what_json_cannot_say_and_the_other_method(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="cannot be written as JSON"):
        llm.complete("a", logit_bias={1: object()})  # type: ignore[arg-type]
    # The encoder would write null, which is the default.
    for fields in ({"temperature": math.inf}, {"top_p": math.nan}, {"logit_bias": {1: -math.inf}}):
        with pytest.raises(InvalidRequest, match="cannot be written as JSON") as refused:
            llm.complete("a", **fields)
        assert refused.value.param == next(iter(fields))
    # The encoder would write base64, and sets in any order.
    bodies: list[dict[str, Any]] = [{"prompt": b"a"}, {"prompt": {"a", "b"}}, {"prompt": "\udc80"},
        {"prompt": "a", "stop": b"b"}, {"prompt": "a", "user": date(2026, 9, 28)}]  # fmt: skip
    for body in bodies:
        with pytest.raises(InvalidRequest, match="cannot be written as JSON") as refused:
            llm.complete(**body)
        assert refused.value.param == list(body)[-1]
    ids: Any = {1, 2}
    with pytest.raises(InvalidRequest, match="'tokens': it cannot be written as JSON"):
        llm.detokenize(ids)
    with pytest.raises(InvalidRequest, match=r"stream\(\)"):
        llm.complete("a", stream=True)  # type: ignore[call-arg]


async def test_infill_and_tokens(client: Client, either: LLM) -> None:
    wanted = await client.complete(prompt="a b", suffix=" c", max_tokens=6, temperature=0)
    found = either.infill("a b", " c", max_tokens=6, temperature=0)
    assert found.text == wanted["choices"][0]["text"]
    ids = either.tokenize("Once upon")
    assert either.detokenize(ids) == "Once upon"
    assert ids == (await client.post("/tokenize", {"prompt": "Once upon"})).json()["tokens"]
    with pytest.raises(InvalidRequest, match="below the vocabulary's size"):
        either.detokenize([10**6])


def test_the_default_is_the_start_of_a_document(either: LLM) -> None:
    wanted = comparable(either.complete("", max_tokens=2, temperature=0))
    assert comparable(either.complete(max_tokens=2, temperature=0)) == wanted


def test_connecting_says_what_is_wrong(url: str) -> None:
    for address in ("127.0.0.1:8000", "http://127.0.0.1:99999", "http://[::1", "http://:80",
                    f"{url}/?key=a", f"{url}#a"):  # fmt: skip
        with pytest.raises(ConfigError, match="no address of a server"):
            LLM.connect(address)
    for address in ("http://me:pass@127.0.0.1", "me:pass@127.0.0.1"):
        with pytest.raises(ConfigError, match="takes no user or password") as refused:
            LLM.connect(address)
        assert "pass@" not in str(refused.value)
    for timeout in (0, -1, math.nan, "9", None, True):
        with pytest.raises(ConfigError, match=r"timeout_s = .*: expected a number of seconds"):
            LLM.connect(url, timeout_s=timeout)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no way to this server: Invalid IDNA"):
        LLM.connect("http://ä..b")
    for key in ("\u043a", "a\nb"):
        with pytest.raises(ConfigError, match="a key has letters"):
            LLM.connect(url, key=key)
    with pytest.raises(ModelNotFound, match="`-`"):
        LLM.connect(url, model="")
    with pytest.raises(ModelNotFound, match="`other`"):
        LLM.connect(url, model="other")
    unreached = "The server http://127.0.0.1:9 cannot be reached, or broke off: "
    with pytest.raises(UpstreamFailed, match=rf"^{unreached}All connection attempts failed\.$"):
        LLM.connect("http://127.0.0.1:9")


def test_a_silent_server_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(UpstreamFailed, match=r"silent for longer than the timeout\.$"):
            LLM.connect(f"http://127.0.0.1:{port}", timeout_s=0.01)


def test_a_proxy_that_cannot_be_used_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "odd://127.0.0.1:9")
    with pytest.raises(ConfigError, match="no way to this server: Unknown scheme for proxy"):
        LLM.connect(url)


def test_an_alias_for_every_other_name_can_be_connected_to() -> None:
    """It stands in no listing (R1)."""
    with (
        served(aliases={"*": Alias("toy")}) as there,
        LLM.connect(there, model="org/gpt 4?") as model,
    ):
        assert model.facts.name == "org/gpt 4?"
        assert model.complete("a", max_tokens=1).model == "org/gpt 4?"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "invalid_api_key", AuthenticationFailed),
        (404, "model_not_found", ModelNotFound),
        (429, "rate_limit_exceeded", RateLimited),
        (418, None, ApiError),
    ],
)
def test_errors_of_a_server_have_their_classes(
    status: int, code: str | None, kind: type[ApiError]
) -> None:
    body = {"message": "No.", "type": "x", "param": "p", "code": code}
    error = error_of(status, msgspec.json.encode({"error": body}))
    assert type(error) is kind
    assert (error.message, error.param, error.code) == ("No.", "p", code)
    for raw in (b"<html>", b'{"a": "\xff"}', b'{"a": %s}' % (b"[" * 10**5 + b"]" * 10**5)):
        assert isinstance(error_of(status, raw), UpstreamFailed)
