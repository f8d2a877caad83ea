"""L: log-probabilities. ``properties`` compares values and offsets with an oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from afterword.engine.toy import ToyRunner, ToyTokenizer, toy_engine
from support.asgi import Client

TOKENIZER = ToyTokenizer()
END = sorted(TOKENIZER.end_ids)


async def arrays(client: Client, **body: Any) -> dict[str, Any]:
    answer = await client.complete(**{"temperature": 0, "max_tokens": 4, **body})
    result: dict[str, Any] = answer["choices"][0]["logprobs"]
    return result


async def test_L1_shape(client: Client) -> None:
    got = await arrays(client, prompt="a", logprobs=2)
    assert list(got) == ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
    assert {len(column) for column in got.values()} == {4}


async def test_L2_raw_distribution(client: Client) -> None:
    """Neither bias nor penalties nor temperature change what is reported."""
    plain = await arrays(client, prompt="a", logprobs=3, max_tokens=1)
    token = next(iter(plain["top_logprobs"][0]))
    biased = await arrays(client, prompt="a", logprobs=3, max_tokens=1, temperature=1.7, seed=1,
                          logit_bias={str(TOKENIZER.encode(token)[0]): 5}, top_k=2)  # fmt: skip
    for key, value in plain["top_logprobs"][0].items():
        assert biased["top_logprobs"][0][key] == value


async def test_L3_entries(client: Client) -> None:
    for count in (0, 1, 5):
        got = await arrays(client, prompt="a", logprobs=count, temperature=2, seed=3,
                           max_tokens=40)  # fmt: skip
        for token, value, top in zip(
            got["tokens"], got["token_logprobs"], got["top_logprobs"], strict=True
        ):
            assert top[token] == value
            assert len(top) in {max(count, 1), count + 1}
    got = await arrays(client, prompt="a", logprobs=5, max_tokens=20)
    for value, top in zip(got["token_logprobs"], got["top_logprobs"], strict=True):
        assert value == max(top.values())


async def test_L4_bytes_and_special_tokens(client: Client) -> None:
    half = TOKENIZER.pieces.index(b"\xf0\x9f")
    got = await arrays(client, prompt=[97, half, END[0]], logprobs=0, echo=True, max_tokens=0)
    assert got["tokens"] == ["a", "bytes:\\xf0\\x9f", "<|endoftext|>"]
    ended = await arrays(client, prompt="a", logprobs=0, logit_bias={str(END[1]): 100})
    assert ended["tokens"] == ["<|im_end|>"]


async def test_L5_offsets_count_code_points_from_the_prompts_start(client: Client) -> None:
    prompt = "e\u0301🙂"
    echoed = await arrays(client, prompt=prompt, logprobs=0, echo=True, max_tokens=2)
    bare = await arrays(client, prompt=prompt, logprobs=0, max_tokens=2)
    assert bare["text_offset"][0] == len(prompt)
    assert echoed["text_offset"][-2:] == bare["text_offset"]
    emoji = TOKENIZER.pieces.index(b"\xf0\x9f"), TOKENIZER.pieces.index(b"\x98\x80")
    split = await arrays(client, prompt=[97, *emoji, 98], logprobs=0, echo=True, max_tokens=0)
    assert split["text_offset"] == [0, 1, 1, 2]


async def test_L6_tokens_of_the_stop_appear(client: Client) -> None:
    answer = await client.complete(
        prompt="a", logprobs=0, logit_bias={"98": 100}, stop="bbb", temperature=0
    )
    (choice,) = answer["choices"]
    assert choice["text"] == ""
    assert choice["logprobs"]["tokens"] == ["b", "b", "b"]
    assert choice["logprobs"]["text_offset"] == [1, 2, 3]
    assert answer["usage"]["completion_tokens"] == 3


async def test_L7_numbers_are_json(
    serve: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that a model gives no chance at all has a number, too."""
    row = ToyRunner.row

    def never_b(runner: ToyRunner, history: int) -> npt.NDArray[np.float32]:
        logits = row(runner, history)
        logits[ord("b")] = -np.inf
        return logits

    monkeypatch.setattr(ToyRunner, "row", never_b)
    got = await arrays(serve(toy_engine()), prompt="ab", echo=True, max_tokens=0, logprobs=0)
    assert got["token_logprobs"] == [None, -9999.0]
    assert got["top_logprobs"] == [None, {"b": -9999.0}]
