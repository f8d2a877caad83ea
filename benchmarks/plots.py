"""Plots the time of a step by context, by sequences, by rows of one sequence, and by model.

``python benchmarks/plots.py --out FILE.svg [--model NAME=FILE ...]``; the default is the embedded
model. The figures are also printed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import tests_path  # noqa: F401 - where support is
from afterword.core.job import SamplingParams
from afterword.core.machine import usable_cores
from afterword.engine.batching.runner import Batch, Trim
from afterword.engine.llama.runner import BATCH_TOKENS, LlamaRunner
from afterword.engine.row_query import RowQuery
from stages import best_s
from support.embedded import embedded_file
from support.runners import open_runner

CONTEXTS = (0, 256, 512, 1024, 2048, 4000)
SEQUENCES = (1, 2, 4, 8, 16, 32)
ROWS = (1, 2, 4, 8, 16, 32)
ROUNDS = 8
Points = list[tuple[int, float]]


def step(slots: Sequence[int], start: int, rows: int) -> Batch:
    """Returns a batch of ``rows`` tokens from ``start`` on in each slot; wants their last rows."""
    count = len(slots) * rows
    return Batch(
        np.arange(count, dtype=np.int32) + 1000,
        np.tile(np.arange(start, start + rows, dtype=np.int32), len(slots)),
        np.repeat(np.array(slots, np.int32), rows),
        np.tile(np.arange(rows) == rows - 1, len(slots)),
    )


def fill(runner: LlamaRunner, slots: Sequence[int], tokens: int) -> None:
    """Fill each slot with ``tokens`` tokens; slots are emptied first."""
    for slot in slots:
        runner.apply([Trim(slot, 0)])
        for start in range(0, tokens, BATCH_TOKENS):
            runner.decode(step([slot], start, min(BATCH_TOKENS, tokens - start)))


def decode_ms(runner: LlamaRunner, slots: Sequence[int], start: int, rows: int) -> float:
    """Returns the milliseconds of a step, the minimum of a few."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        runner.decode(step(slots, start, rows))
        times.append(time.perf_counter() - started)
        runner.apply([Trim(slot, start) for slot in slots])
    return 1e3 * min(times)


def by_context(runner: LlamaRunner) -> Iterator[tuple[int, float]]:
    """Yields (tokens, ms) of one row after more and more tokens, after a warm-up."""
    for _ in range(3):
        decode_ms(runner, [0], 0, 1)
    for tokens in CONTEXTS:
        fill(runner, [0], tokens)
        yield tokens, decode_ms(runner, [0], tokens, 1)


def by_sequences(runner: LlamaRunner) -> Iterator[tuple[int, float]]:
    """Yields (sequences, ms) of one row for each of more and more sequences, after 64 tokens."""
    fill(runner, range(max(SEQUENCES)), 64)
    for count in SEQUENCES:
        yield count, decode_ms(runner, range(count), 64, 1)


def by_rows(runner: LlamaRunner) -> Iterator[tuple[int, float]]:
    """Yields (rows, ms) of more and more rows of one sequence, as drafts have them."""
    fill(runner, [0], 64)
    for rows in ROWS:
        yield rows, decode_ms(runner, [0], 64, rows)


def drawing_ms(runner: LlamaRunner) -> float:
    """Returns the milliseconds to sample a token from a row with top_p."""
    fill(runner, [0], 64)
    rows = runner.decode(step([0], 64, 1)).copy()
    queries = [RowQuery(0, SamplingParams(top_p=0.95), 0.5)]
    return 1e3 * best_s(lambda: runner.sampler.answer(rows, queries), ROUNDS)


def draw(curves: dict[str, dict[str, Points]], models: Sequence[str], out: Path) -> None:
    """Three panels of curves, a line for each model."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, 3), curves.items(), strict=True):
        for name in models:
            axes.plot(*zip(*lines[name], strict=True), marker="o", label=name)
        axes.set_xlabel(title)
        axes.set_ylabel("milliseconds a step")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Parse arguments, measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=usable_cores())
    args = parser.parse_args()
    models = {name: Path(file) for name, _, file in (m.partition("=") for m in args.model)}
    if not models:
        models["embedded"] = embedded_file()
    curves: dict[str, dict[str, Points]] = {
        "tokens of context": {}, "sequences, a row each": {}, "rows of one sequence": {},
    }  # fmt: skip
    for name, path in models.items():
        with open_runner(path, slots=1, slot_tokens=4096, threads=args.threads) as runner:
            curves["tokens of context"][name] = list(by_context(runner))
        with open_runner(path, slots=32, slot_tokens=128, threads=args.threads) as runner:
            curves["sequences, a row each"][name] = list(by_sequences(runner))
            curves["rows of one sequence"][name] = list(by_rows(runner))
            print(f"{name}: drawing {drawing_ms(runner):.2f} ms of {runner.vocabulary} tokens")
        for title, lines in curves.items():
            figures = ", ".join(f"{x}: {y:.1f}" for x, y in lines[name])
            print(f"{name}: ms a step by {title}: {figures}", flush=True)
    draw(curves, list(models), args.out)


if __name__ == "__main__":
    main()
