"""Batch invariance under load: other requests and cached prefixes change no bit of an answer."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

from afterword.engine.llama.engine import open_engine
from afterword.engine.llama.loading import EngineOptions
from conftest import make_client
from support.asgi import Client
from support.tiny_gguf import make_gguf

CONTEXT = 4096
REQUESTS = 500
LONG = ((997, 4), (2000, 1), (4000, 1))
"""(Length, count) of the few long prompts; attention over them takes most of this test's time."""
TOGETHER = 16


def varied_requests(vocabulary: int, rng: random.Random) -> list[dict[str, Any]]:
    """Bodies that score, sample, rank and stop; most prompts have a common prefix."""
    text = [rng.randrange(vocabulary) for _ in range(CONTEXT)]
    lengths = [length for length, count in LONG for _ in range(count)]
    lengths += [int(2 ** rng.uniform(0, 8)) for _ in range(REQUESTS - len(lengths))]
    rng.shuffle(lengths)
    bodies = []
    for seed, length in enumerate(lengths):
        own = rng.randrange(length + 1) if rng.random() < 0.4 else length
        prompt = text[:own] + [rng.randrange(vocabulary) for _ in range(length - own)]
        n = rng.choice((1, 1, 1, 1, 3))
        bodies.append({
            "prompt": prompt,
            "max_tokens": min(rng.choice((0, 1, 4, 10)), CONTEXT - length),
            "n": n,
            "best_of": n + rng.choice((0, 0, 0, 2)),
            "echo": rng.random() < 0.5,
            "logprobs": rng.choice((None, 0, 1, 5)),
            "temperature": rng.choice((0, 1, 0.7)),
            "top_p": rng.choice((1, 0.9)),
            "frequency_penalty": rng.choice((0, 0.5)),
            "stop": rng.choice((None, "e", ["\u00e9", "in", "the"])),
            "seed": seed,
        })  # fmt: skip
    return bodies


async def answer(client: Client, body: dict[str, Any]) -> Any:
    """Returns all that must not change; the number of cached tokens may."""
    reply = await client.post("/v1/completions", {"model": "tiny", **body})
    assert reply.status == 200, reply.body
    whole = reply.json()
    del whole["usage"]["prompt_tokens_details"]
    return whole["choices"], whole["usage"], whole["model"]


async def test_D1_answers_do_not_depend_on_the_batch_the_cache_or_the_order(
    tmp_path: Path,
) -> None:
    """Answers alone in one slot equal those of 16 at a time in random order, with evictions.

    This runs twice. The second engine has a smaller target gap, so it cuts prompts into other
    chunks, as may happen after a restart.
    """
    path = make_gguf(tmp_path / "tiny.gguf", context=CONTEXT)
    single = open_engine(
        path, digest="0" * 64, name="tiny", options=EngineOptions(slots=1, threads=1)
    )
    rng = random.Random(3)
    bodies = varied_requests(len(single.tokenizer.pieces) - 2, rng)
    client = make_client({"tiny": single})
    alone = [await answer(client, body) for body in bodies]
    await single.aclose()
    for gap_ms in (200, 5):
        options = EngineOptions(slots=5, threads=1, target_gap_ms=gap_ms)
        crowd = open_engine(path, digest="0" * 64, name="tiny", options=options)
        client = make_client({"tiny": crowd})
        order = list(range(len(bodies)))
        rng.shuffle(order)
        gate = asyncio.Semaphore(TOGETHER)

        async def one(i: int, client: Client = client, gate: asyncio.Semaphore = gate) -> Any:
            async with gate:
                return await answer(client, bodies[i])

        together = await asyncio.gather(*(one(i) for i in order))
        assert crowd.stats().cached_tokens > 0
        await crowd.aclose()
        for i, found in zip(order, together, strict=True):
            assert found == alone[i], bodies[i]
