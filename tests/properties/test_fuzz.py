"""Malformed and extreme bodies get an answer or a clear refusal, never a 5xx, and keep no slot."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from afterword.completion.request import CompletionRequest
from support.asgi import Client, chunks_of
from support.examples import examples

FIELDS = [*CompletionRequest.__struct_fields__, "stream", "messages", "", "modèle"]
NUMBERS: st.SearchStrategy[Any] = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**31 - 1, -(2**31), 2**53, 2**63, 2**64, 10**30, -(10**400)]),
    st.floats(),
    st.sampled_from([1e308, -0.0, 1e-320, 0.5, 2.0000001]),
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["toy", "plain", "gpt-3.5-turbo-instruct", "\ud800", "\x00", "x" * 3000, "true"]
    ),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.dictionaries(TEXTS | st.integers().map(str), inner, max_size=3),
    ),
    max_leaves=12,
)
BODIES = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5)
HEAD = {"model": "toy", "prompt": "a", "max_tokens": 3}


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """The bytes of a request, some of them changed, lost or doubled."""
    data = bytearray(json.dumps({**HEAD, **draw(BODIES)}).encode())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.integers(0, 2)):
            case 0:
                data[at] = draw(st.integers(0, 255))
            case 1:
                del data[at : at + draw(st.integers(1, 20))]
            case _:
                data[at:at] = data[at : at + draw(st.integers(1, 20))]
        if not data:
            break
    return bytes(data)


async def check(client: Client, path: str, raw: bytes) -> None:
    """Check the status, envelope and shape of the answer."""
    reply = await client.post(path, raw)
    assert reply.status in {200, 400, 404}, (reply.status, raw)
    if reply.status != 200:
        assert reply.error["type"] == "invalid_request_error"
        assert reply.error["message"]
    elif reply.headers["content-type"] == "text/event-stream; charset=utf-8":
        chunks_of(reply.body)
    else:
        # A strict reader: no NaN, no infinity, valid UTF-8.
        msgspec.json.decode(reply.body)


@given(body=BODIES, known=st.booleans())
@example(body={"prompt": [["a"], [1]]}, known=True)
@example(body={"logit_bias": {"\ud800": 1}}, known=True)
@settings(max_examples=examples(3000), deadline=None)
async def test_any_fields(client: Client, body: dict[str, Any], known: bool) -> None:
    await check(client, "/v1/completions", json.dumps({**HEAD, **body} if known else body).encode())


@given(raw=mangled())
@example(raw=b'{"model": "toy", "seed": ' + b"9" * 5000 + b"}")
@example(raw=b'{"model": "toy", "temperature": -' + b"9" * 400 + b"}")
@example(raw=b'{"model": "toy", "logit_bias": {"1": ' + b"9" * 5000 + b"}}")
@settings(max_examples=examples(2000), deadline=None)
async def test_any_bytes(client: Client, raw: bytes) -> None:
    await check(client, "/v1/completions", raw)


@given(body=st.dictionaries(st.sampled_from(["model", "prompt", "tokens", "x"]), VALUES))
@settings(max_examples=examples(500), deadline=None)
async def test_the_other_routes(client: Client, body: dict[str, Any]) -> None:
    for path in ("/tokenize", "/detokenize", "/v1/engines/toy/completions"):
        await check(client, path, json.dumps(body).encode())


async def test_no_slot_is_kept(client: Client) -> None:
    """After the tests above no engine has work left."""
    while busy := await slots_at_work(client):
        assert busy > 0


async def slots_at_work(client: Client) -> float:
    text = (await client.get("/metrics")).body.decode()
    found = re.findall(
        r"^afterword_engine_(?:active_slots|waiting_sequences)\{.*\} (.*)$", text, re.MULTILINE
    )
    assert found
    return sum(map(float, found))
