"""F: fill in the middle, on the toy model. ``engine/llama`` tests the layouts of families."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from afterword.engine.toy import ToyTokenizer, toy_engine
from support.asgi import Client, fold

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


async def test_F2_special_names_in_the_clients_text_are_text(client: Client) -> None:
    answer = await client.complete(prompt="<|fim_middle|>", suffix="x", max_tokens=0)
    assert answer["usage"]["prompt_tokens"] == len(b"<|fim_middle|>") + 4


async def test_F_streamed_with_n_stop_and_logprobs(client: Client) -> None:
    body = {"prompt": "ab", "suffix": "cd", "n": 2, "stop": ["e", "a"], "logprobs": 2, "seed": 1,
            "max_tokens": 20}  # fmt: skip
    answer = await client.complete(**body)
    assert fold(await client.stream(**body), usage=False)["choices"] == answer["choices"]
    assert answer["choices"][0]["logprobs"]["text_offset"][0] == 2


@pytest.mark.parametrize("client", ["here", "behind afterword"], indirect=True)
async def test_F3_refused_without_infill_tokens(client: Client) -> None:
    error = await client.refuse(model="plain", prompt="ab", suffix="cd")
    assert error["param"] == "suffix"
    assert "fill-in-the-middle" in error["message"]


async def test_F4_echo(client: Client) -> None:
    bare = await client.complete(prompt="ab", suffix="cd", max_tokens=9, temperature=0)
    echoed = await client.complete(prompt="ab", suffix="cd", max_tokens=9, temperature=0, echo=True)
    assert echoed["choices"][0]["text"] == "ab" + bare["choices"][0]["text"]
    error = await client.refuse(prompt="ab", suffix="cd", echo=True, logprobs=0)
    assert error["param"] == "suffix"
