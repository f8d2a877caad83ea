"""E: echo and scoring. ``properties`` compares the values with an oracle."""

from __future__ import annotations

from typing import Any

from afterword.engine.toy import ToyTokenizer
from support.asgi import Client, fold

TOKENIZER = ToyTokenizer()
END = sorted(TOKENIZER.end_ids)
PROMPT = "Once upon a time, é 🙂"
COLUMNS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


async def test_E1_the_prompt_comes_first(client: Client) -> None:
    ids = TOKENIZER.encode(PROMPT)
    bare = await client.complete(prompt=PROMPT, max_tokens=6, temperature=0)
    for prompt in (PROMPT, ids):
        answer = await client.complete(prompt=prompt, max_tokens=6, temperature=0, echo=True, n=2)
        for choice in answer["choices"]:
            assert choice["text"] == PROMPT + bare["choices"][0]["text"]


async def test_E2_arrays_cover_prompt_and_completion(client: Client) -> None:
    for model, added in (("toy", 0), ("toy-bos", 1)):
        ids = TOKENIZER.encode(PROMPT)
        answer = await client.complete(
            model=model, prompt=PROMPT, max_tokens=3, temperature=0, echo=True, logprobs=2
        )
        (choice,) = answer["choices"]
        arrays = choice["logprobs"]
        assert {len(arrays[name]) for name in COLUMNS} == {len(ids) + 3}
        assert arrays["token_logprobs"][0] is None
        assert arrays["top_logprobs"][0] is None
        assert all(value is not None for value in arrays["token_logprobs"][1:])
        assert arrays["text_offset"][0] == 0
        # A BOS that the server added is in the usage and nowhere else.
        assert answer["usage"]["prompt_tokens"] == len(ids) + added
        assert arrays["tokens"][0] == "Once"
        assert choice["text"].startswith(PROMPT)


async def test_E2_a_bos_of_the_clients_own_is_shown(client: Client) -> None:
    for prompt in ("<|im_start|>abc", TOKENIZER.encode("<|im_start|>abc")):
        answer = await client.complete(
            model="toy-bos", prompt=prompt, max_tokens=0, echo=True, logprobs=0
        )
        (choice,) = answer["choices"]
        assert answer["usage"]["prompt_tokens"] == 4
        if isinstance(prompt, list):
            assert choice["logprobs"]["tokens"] == ["<|im_start|>", "a", "b", "c"]
            assert choice["text"] == "<|im_start|>abc"


async def test_E3_scoring(client: Client) -> None:
    answer = await client.complete(prompt=PROMPT, max_tokens=0, echo=True, logprobs=1)
    (choice,) = answer["choices"]
    assert choice["text"] == PROMPT
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["prompt_tokens"]
    again = await client.complete(prompt=PROMPT, max_tokens=0, echo=True, logprobs=1)
    assert again["choices"] == answer["choices"]


async def test_E4_one_token_is_one_entry(client: Client) -> None:
    ids = TOKENIZER.encode(PROMPT)
    for bias in ({}, {str(END[0]): 100}):
        answer = await client.complete(
            prompt=ids, max_tokens=1, echo=True, logprobs=1, logit_bias=bias, temperature=0
        )
        arrays = answer["choices"][0]["logprobs"]
        assert {len(arrays[name]) for name in COLUMNS} == {len(ids) + 1}
        assert answer["usage"]["completion_tokens"] == 1


async def test_E5_every_combination(client: Client) -> None:
    prompts: list[Any] = ["a b", "é", TOKENIZER.encode("a b"), TOKENIZER.encode("é")]
    for prompt in (prompts[0], prompts[2], prompts[:2], prompts[2:]):
        for n in (1, 2):
            for max_tokens in (0, 1, 4):
                for logprobs in (None, 0, 3):
                    body = {"prompt": prompt, "n": n, "max_tokens": max_tokens, "echo": True,
                            "logprobs": logprobs, "seed": 4}  # fmt: skip
                    answer = await client.complete(**body)
                    folded = fold(await client.stream(**body), usage=False)
                    assert folded["choices"] == answer["choices"]
                    many = 2 if prompt in (prompts[:2], prompts[2:]) else 1
                    assert len(answer["choices"]) == many * n
