"""What the endpoint's users do, as requests: sampled streams, choices, scoring, long prompts."""

from __future__ import annotations

import json
import statistics
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import load

SENTENCE = (
    "the harbour was quiet that morning and nobody had yet seen the ship come in with torn sails "
    "while a single gull stood on the wall above the nets that men had left before the storm"
)
WORDS = SENTENCE.split()
PROMPTS = 40
"""Prompts in a scoring request; two of them are under way at a time."""


def text(words: int, seed: int) -> str:
    """Words of no meaning, other ones for each seed; about one token each."""
    return " ".join(WORDS[(seed * 7 + i * (1 + seed % 5) + i // 31) % len(WORDS)]
                    for i in range(words))  # fmt: skip


def sampled(seed: int, *, prompt_words: int, tokens: int) -> dict[str, Any]:
    """A sampled stream that never ends early; ``top_k`` and ``min_p`` are off for every server."""
    return {
        "model": "bench", "prompt": text(prompt_words, seed), "max_tokens": tokens, "seed": seed,
        "temperature": 1, "top_p": 0.95, "top_k": 0, "min_p": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def post(port: int, path: str, body: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """The answer to a POST."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as reply:  # noqa: S310 - loopback
        return json.load(reply)


def many_streams_s(port: int, streams: int, *, prompt_words: int, tokens: int, seed: int) -> float:
    """Seconds until the last of many sampled streams that begin together has ended."""
    bodies = [sampled(seed + i, prompt_words=prompt_words, tokens=tokens) for i in range(streams)]
    started = time.perf_counter()
    timed = load.stream_all(port, bodies)
    if any(each.tokens != tokens for each in timed):
        raise RuntimeError("a stream ended early")
    return max(each.last for each in timed) - started


def choices_s(port: int, n: int, seed: int, *, apart: bool) -> float:
    """Seconds for n choices of 64 tokens of a 512-token prompt, asked together or ``apart``."""
    body = sampled(seed, prompt_words=480, tokens=64)
    if apart:
        started = time.perf_counter()
        load.stream_all(port, [{**body, "seed": i} for i in range(n)])
        return time.perf_counter() - started
    whole = {k: v for k, v in body.items() if not k.startswith("stream")}
    started = time.perf_counter()
    answer = post(port, "/v1/completions", {**whole, "n": n})
    if len(answer["choices"]) != n:
        raise RuntimeError("the server does not make n choices")
    return time.perf_counter() - started


def scoring_prompts(port: int, file: Path, items: int) -> list[list[list[int]]]:
    """Token ids of every choice after its context, by item."""
    lines = file.read_text("utf-8").splitlines()[:items]
    return [
        [
            post(port, "/tokenize", {"prompt": item["context"] + choice})["tokens"]
            for choice in item["choices"]
        ]
        for item in map(json.loads, lines)
    ]


def unique_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Nodes of the trie of all prompts: what has to be computed if nothing is computed twice."""
    trie: dict[int, Any] = {}
    count = 0
    for prompt in prompts:
        node = trie
        for token in prompt:
            if token not in node:
                count += 1
            node = node.setdefault(token, {})
    return count


def score_s(port: int, prompts: Sequence[Sequence[int]]) -> float:
    """Seconds to score all prompts, as token ids, with echo and log-probabilities."""
    left = [prompts[i : i + PROMPTS] for i in range(0, len(prompts), PROMPTS)][::-1]

    def send() -> None:
        while left:
            body = {"model": "bench", "prompt": left.pop(), "max_tokens": 0, "echo": True,
                    "logprobs": 1}  # fmt: skip
            post(port, "/v1/completions", body)

    started = time.perf_counter()
    senders = [threading.Thread(target=send) for _ in range(2)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return time.perf_counter() - started


def score_texts_s(port: int, file: Path, items: int) -> float:
    """The same of a server that takes one text a request, and generates a token at least."""
    texts = [
        item["context"] + choice
        for item in map(json.loads, file.read_text("utf-8").splitlines()[:items])
        for choice in item["choices"]
    ]
    started = time.perf_counter()
    for prompt in texts:
        body = {"model": "bench", "prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": 1}
        post(port, "/v1/completions", body)
    return time.perf_counter() - started


def first_token_s(port: int, prompt: str, *, seed: int = 0) -> float:
    """Seconds to the first token of one stream."""
    (timed,) = load.stream_all(
        port, [{**sampled(seed, prompt_words=1, tokens=2), "prompt": prompt, "temperature": 0}]
    )
    return timed.first - timed.started


def short_beside_long_s(port: int, *, long_words: int, shorts: int) -> list[float]:
    """Times to first token of short requests sent while four long prompts are computed."""
    bodies = [{**sampled(i, prompt_words=long_words, tokens=1)} for i in range(4)]
    done = threading.Event()

    def send() -> None:
        load.stream_all(port, bodies)
        done.set()

    sender = threading.Thread(target=send)
    sender.start()
    waits: list[float] = []
    time.sleep(0.5)  # until the long ones are being computed
    while len(waits) < shorts and not done.is_set():
        waits.append(first_token_s(port, text(12, 50 + len(waits)), seed=len(waits)))
    sender.join()
    return waits


def rewriting_s_per_token(port: int) -> float:
    """Seconds a token of a greedy answer that is a given text of 300 tokens with a small change.

    The prompt is in the cache: it was sent before.
    """
    code = Path(__file__).with_name("basket.txt").read_text("utf-8")
    prompt = (
        "<|im_start|>user\nRename Basket to Cart in this code and print all of it.\n```python\n"
        f"{code}```<|im_end|>\n<|im_start|>assistant\n```python\nclass Cart:\n"
    )
    body = {
        "model": "bench", "prompt": prompt, "max_tokens": 300, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    first_token_s(port, prompt)
    (timed,) = load.stream_all(port, [body])
    return (timed.last - timed.started) / timed.tokens


def p95(values: Sequence[float]) -> float:
    """The 95th percentile; of few values the largest."""
    return statistics.quantiles(values, n=20)[-1] if len(values) >= 20 else max(values)
