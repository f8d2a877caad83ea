"""A: what an answer is."""

from __future__ import annotations

import re
from typing import Any

from afterword.engine.toy import ToyTokenizer
from support.asgi import Client

END = sorted(ToyTokenizer().end_ids)


async def test_A1_head(client: Client) -> None:
    answer = await client.complete(prompt="a", max_tokens=1)
    ids = [
        answer["id"],
        *[(await client.complete(prompt="a", max_tokens=0))["id"] for _ in "12345"],
    ]
    assert all(re.fullmatch(r"cmpl-[A-Za-z0-9]{24,}", each) for each in ids)
    assert len(set(ids)) == len(ids)
    assert answer["object"] == "text_completion"
    assert isinstance(answer["created"], int)
    assert re.fullmatch(r"fp_[0-9a-f]{10}", answer["system_fingerprint"])
    chunks = await client.stream(prompt="a", max_tokens=4)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["id"] != answer["id"]


async def test_A2_choices_of_prompts(client: Client) -> None:
    answer = await client.complete(prompt=["a", "b"], n=2, max_tokens=3, seed=1)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for choice in answer["choices"]:
        assert set(choice) == {"text", "index", "logprobs", "finish_reason"}
        assert choice["logprobs"] is None
    alone = await client.complete(prompt="b", n=2, max_tokens=3, seed=1)
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts[2:] == [choice["text"] for choice in alone["choices"]]


async def test_A3_finish_reasons(client: Client) -> None:
    async def reason(**body: object) -> str:
        answer = await client.complete(prompt="a", temperature=0, **body)
        result: str = answer["choices"][0]["finish_reason"]
        return result

    assert await reason(max_tokens=3) == "length"
    assert await reason(max_tokens=3, logit_bias={str(END[0]): 100}) == "stop"
    assert await reason(max_tokens=3, logit_bias={"98": 100}, stop="bb") == "stop"
    # Both hold: the last token that is allowed completes the stop string.
    assert await reason(max_tokens=2, logit_bias={"98": 100}, stop="bb") == "stop"
    assert await reason(logit_bias={"98": 100}) == "length"


async def test_A4_no_end_token_and_valid_utf8(client: Client) -> None:
    answer = await client.complete(prompt="a", logit_bias={str(END[1]): 100}, temperature=0)
    assert answer["choices"][0]["text"] == ""
    half = ToyTokenizer().pieces.index(b"\xf0\x9f")
    answer = await client.complete(
        prompt="a", max_tokens=1, logit_bias={str(half): 100}, temperature=0
    )
    assert answer["choices"][0]["text"] == "\ufffd"
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_A5_usage(client: Client) -> None:
    answer = await client.complete(prompt=[[9, 9, 9, 9], [1, 2]], n=3, max_tokens=5,
                                   logit_bias={str(i): -100 for i in END})  # fmt: skip
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 6
    assert usage["completion_tokens"] == 30
    assert usage["total_tokens"] == 36
    ended = await client.complete(prompt="a", logit_bias={str(END[0]): 100}, temperature=0)
    assert ended["usage"]["completion_tokens"] == 1
    ranked = await client.complete(prompt="a", n=1, best_of=4, max_tokens=5,
                                   logit_bias={str(i): -100 for i in END})  # fmt: skip
    assert ranked["usage"]["completion_tokens"] == 20
    assert ranked["usage"]["prompt_tokens"] == 1


async def test_A5_cached_tokens(client: Client) -> None:
    prompt = list(range(40, 90))
    model = (await client.get("/v1/models/toy")).json()["afterword"]
    # Nothing is shared if that would change answers, as on a GPU.
    shares = model["prefix_sharing"] != "none"
    first = await client.complete(prompt=prompt, max_tokens=1)
    again = await client.complete(prompt=prompt, max_tokens=1)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 49 * shares
    both = await client.complete(prompt=[prompt, prompt[:30]], max_tokens=1)
    assert both["usage"]["prompt_tokens_details"]["cached_tokens"] == (49 + 29) * shares


async def test_A6_best_of_ranks_by_mean_logprob(client: Client) -> None:
    """The expected order comes from all candidates, which ``n`` shows for the same seed."""
    # Candidates of different lengths: the mean ranks them otherwise than the sum.
    body: dict[str, Any] = {"prompt": "a", "max_tokens": 9, "logit_bias": {str(END[0]): 9}}
    sums_differ = False
    for seed in range(8):
        everyone = await client.complete(**body, n=6, seed=seed, logprobs=0)

        def total(choice: dict[str, dict[str, list[float]]]) -> float:
            return sum(choice["logprobs"]["token_logprobs"])

        def mean(choice: dict[str, dict[str, list[float]]]) -> float:
            return total(choice) / len(choice["logprobs"]["token_logprobs"])

        ranked = sorted(everyone["choices"], key=mean, reverse=True)[:2]
        best = await client.complete(**body, n=2, best_of=6, seed=seed, logprobs=0)
        for got, wanted in zip(best["choices"], ranked, strict=True):
            assert got["text"] == wanted["text"]
            assert got["logprobs"] == wanted["logprobs"]
        plain = await client.complete(**body, n=2, best_of=6, seed=seed)
        assert [c["text"] for c in plain["choices"]] == [c["text"] for c in best["choices"]]
        assert [c["index"] for c in plain["choices"]] == [0, 1]
        assert all(c["logprobs"] is None for c in plain["choices"])
        sums_differ |= ranked[0] is not max(everyone["choices"], key=total)
    assert sums_differ
