"""Measures the time of validation and planning, and how long they block other streams.

``python benchmarks/planning.py --model FILE``; the model needs a context of 30,000 tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Awaitable
from pathlib import Path

import uvloop

from afterword.cli.serve import SWITCH_INTERVAL_S
from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.service import CompletionService
from afterword.core.limits import Limits
from afterword.engine.llama.engine import open_engine
from afterword.engine.llama.loading import EngineOptions

TEXT = "The quick brown fox jumps over the lazy dog again"
IDS = 30_000
ROUNDS = 50
TICK_S = 0.0005


async def measure(model: Path) -> None:
    """Print medians, and the event loop's longest pause while long prompts are planned."""
    options = EngineOptions(slots=1, threads=1)
    engine = open_engine(model, digest="0" * 64, name="m", options=options)
    catalog = Catalog([ServedModel("m", engine, 0)])
    service = CompletionService(catalog, Limits(), clock=time.time, entropy=os.urandom)
    vocabulary = len(engine.tokenizer.pieces)
    rng = random.Random(1)
    bodies: dict[str, list[dict[str, object]]] = {
        "10 tokens of text": [{"prompt": TEXT}] * ROUNDS,
        f"{IDS:,} token ids": [
            {"prompt": [rng.randrange(vocabulary) for _ in range(IDS)], "max_tokens": 1}
            for _ in range(ROUNDS)
        ],
    }
    for name, requests in bodies.items():
        taken_s, idle_s, pauses_s = [], [], []
        for request in requests:
            body = json.dumps({"model": "m", **request}).encode()
            idle_s.append(await longest_pause(asyncio.sleep(0.005)))
            started = time.perf_counter()
            pauses_s.append(await longest_pause(service.plan(body)))
            taken_s.append(time.perf_counter() - started)
        print(
            f"{name}: {statistics.median(taken_s) * 1e3:.2f} ms; the loop pauses for "
            f"{statistics.median(pauses_s) * 1e3:.2f} ms (median), {max(pauses_s) * 1e3:.2f} ms "
            f"(worst of {ROUNDS}); idle {max(idle_s) * 1e3:.2f} ms"
        )
    await engine.aclose()


async def longest_pause(work: Awaitable[object]) -> float:
    """Returns the longest seconds between two ticks of the loop while ``work`` is done."""
    loop = asyncio.get_running_loop()
    times = [time.perf_counter()]
    running = True

    def tick() -> None:
        times.append(time.perf_counter())
        if running:
            loop.call_later(TICK_S, tick)

    loop.call_later(TICK_S, tick)
    await work
    running = False
    times.append(time.perf_counter())
    return max(b - a for a, b in itertools.pairwise(times)) - TICK_S


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    # The server sets the same interval.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(measure(parser.parse_args().model))


if __name__ == "__main__":
    main()
