"""Typical requests of the endpoint's users: sampled streams, choices, scoring, long prompts."""

from __future__ import annotations

import json
import random
import statistics
import time
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import tests_path  # noqa: F401 - where support is
from support import load

SENTENCE = (
    "the harbour was quiet that morning and nobody had yet seen the ship come in with torn sails "
    "while a single gull stood on the wall above the nets that men had left before the storm"
)
WORDS = SENTENCE.split()
PROMPTS = 40
"""Prompts in a scoring request; two requests run at a time."""


def text(words: int, seed: int) -> str:
    """Returns words without meaning, different for each seed; about one token each."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def sampled(seed: int, *, prompt_words: int, tokens: int) -> dict[str, Any]:
    """Returns the body of a sampled stream that never ends early.

    ``top_k`` and ``min_p`` are off for every server.
    """
    return {
        "model": "bench", "prompt": text(prompt_words, seed), "max_tokens": tokens, "seed": seed,
        "temperature": 1, "top_p": 0.95, "top_k": 0, "min_p": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def sampled_streams(
    streams: int, tokens: int, *, prompt_words: int = 60, seed: int = 0
) -> list[dict[str, Any]]:
    """Returns the bodies of so many sampled streams, each with a prompt of its own."""
    return [sampled(seed + i, prompt_words=prompt_words, tokens=tokens) for i in range(streams)]


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
    """Returns the seconds until the last of many sampled streams, sent together, has ended."""
    bodies = sampled_streams(streams, tokens, prompt_words=prompt_words, seed=seed)
    started = time.perf_counter()
    timed = load.stream_all(port, bodies)
    if any(each.tokens != tokens for each in timed):
        raise RuntimeError("a stream ended early")
    return max(each.last for each in timed) - started


def choices_s(port: int, n: int, seed: int, *, apart: bool) -> float:
    """Returns the seconds for n choices of 64 tokens of a 512-token prompt.

    The choices are one request, or n requests if ``apart``.
    """
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


def read_items(file: Path, items: int) -> list[dict[str, Any]]:
    """Returns the first items of a multiple-choice file."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()[:items]]


def tokenize(port: int, prompt: str) -> list[int]:
    """Returns the ids of a text by the project's server."""
    found: list[int] = post(port, "/tokenize", {"prompt": prompt})["tokens"]
    return found


def scoring_prompts(port: int, items: Sequence[Mapping[str, Any]]) -> list[list[list[int]]]:
    """Returns the token ids of each choice after its context, by item."""
    return [
        [tokenize(port, item["context"] + choice) for choice in item["choices"]] for item in items
    ]


def unique_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Returns the number of nodes in the trie of all prompts: the least tokens to compute."""
    trie: dict[int, Any] = {}
    count = 0
    for prompt in prompts:
        node = trie
        for token in prompt:
            if token not in node:
                count += 1
            node = node.setdefault(token, {})
    return count


class Scored(NamedTuple):
    """The seconds that scoring took, and for each prompt the log-probabilities of its tokens."""

    took_s: float
    values: Sequence[Sequence[float | None]]


def score(port: int, prompts: Sequence[Sequence[int]]) -> Scored:
    """Score all prompts, as token ids, with echo and log-probabilities."""

    def scored(at: int) -> list[Sequence[float | None]]:
        body = {"model": "bench", "prompt": prompts[at : at + PROMPTS], "max_tokens": 0,
                "echo": True, "logprobs": 1}  # fmt: skip
        choices = post(port, "/v1/completions", body)["choices"]
        return [choice["logprobs"]["token_logprobs"] for choice in choices]

    started = time.perf_counter()
    with ThreadPoolExecutor(2) as senders:
        found = list(senders.map(scored, range(0, len(prompts), PROMPTS)))
    took_s = time.perf_counter() - started
    return Scored(took_s, [values for batch in found for values in batch])


def score_texts_s(port: int, items: Sequence[Mapping[str, Any]]) -> float:
    """Returns the seconds to score all choices on a server that takes one text a request.

    The server must generate at least one token.
    """
    texts = [item["context"] + choice for item in items for choice in item["choices"]]
    started = time.perf_counter()
    for prompt in texts:
        body = {"model": "bench", "prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": 1}
        post(port, "/v1/completions", body)
    return time.perf_counter() - started


def first_token_s(port: int, prompt: str, *, seed: int = 0) -> float:
    """Returns the seconds to the first token of one stream."""
    (timed,) = load.stream_all(
        port, [{**sampled(seed, prompt_words=1, tokens=2), "prompt": prompt, "temperature": 0}]
    )
    return timed.first - timed.started


def start_s(command: list[str], port: int) -> float:
    """Returns the seconds from starting a server to the first token of a short prompt.

    Retries every 10 ms, because servers refuse connections or answer 503 until they can serve.
    """
    body = {**sampled(0, prompt_words=12, tokens=1), "temperature": 0}
    return load.start_s(command, port, body)


def short_beside_long_s(port: int, *, long_words: int, limit_s: float) -> list[float]:
    """Returns seconds to the first token of short requests sent during four long prompts.

    Each short request is sent half a second after the last one has ended, until the long prompts
    are done or ``limit_s`` seconds have passed. One without a token by then counts as long as it
    has waited.
    """
    bodies = [sampled(i, prompt_words=long_words, tokens=1) for i in range(4)]
    waits: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        until = time.perf_counter() + limit_s
        long = pool.submit(load.stream_all, port, bodies, limit_s=limit_s)
        time.sleep(0.5)  # until the long ones are being computed
        while not long.done() and (left_s := until - time.perf_counter()) > 0:
            seed = 50 + len(waits)
            body = sampled(seed, prompt_words=12, tokens=1)
            (timed,) = load.stream_all(port, [body], limit_s=left_s)
            waits.append((timed.first or time.perf_counter()) - timed.started)
            time.sleep(0.5)
        long.result()
    return waits


def rewriting_s_per_token(port: int) -> float:
    """Returns the seconds a token of a greedy answer that repeats a text with a small change.

    The answer has 300 tokens at most. The prompt is sent once before, so that it is cached.
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
    """Returns the 95th percentile; of fewer than 20 values the largest."""
    return statistics.quantiles(values, n=20)[-1] if len(values) >= 20 else max(values)
