"""Measures the stages of a step, and compares them with the limits of the machine.

``python benchmarks/stages.py [--model FILE]`` prints memory bandwidth and arithmetic of the
machine, then each kind of step by stage, on the real model without HTTP.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import tests_path  # noqa: F401 - where support is
from afterword.core.job import Job, SamplingParams
from afterword.core.machine import usable_cores
from afterword.engine.batching.outcome import evaluate
from afterword.engine.batching.runner import Trim
from afterword.engine.batching.scheduler import Scheduler
from afterword.engine.llama.runner import BATCH_TOKENS, LlamaRunner
from support.embedded import embedded_file
from support.runners import open_runner

STAGES = ("schedule", "apply", "decode", "draw", "update")
ARRAY_BYTES = 256 * 2**20
MATRIX = 2048
ROUNDS = 5


def best_s(compute: Callable[[], object], repeats: int) -> float:
    """Seconds of the quickest run; the first one warms up and may be the quickest, too."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        compute()
        best = min(best, time.perf_counter() - started)
    return best


def bandwidth(threads: int) -> float:
    """Returns the bytes a second that ``threads`` threads read together from memory."""
    parts = np.array_split(np.ones(ARRAY_BYTES // 8), threads)
    with ThreadPoolExecutor(threads) as pool:
        return ARRAY_BYTES / best_s(lambda: list(pool.map(np.max, parts)), ROUNDS)


def arithmetic() -> float:
    """Returns the operations a second of a product of float32 matrices, on all cores."""
    left = np.ones((MATRIX, MATRIX), np.float32)
    out = np.empty_like(left)
    return 2 * MATRIX**3 / best_s(lambda: np.matmul(left, left, out=out), ROUNDS)


class Profile:
    """Measures the stages of steps."""

    def __init__(self, runner: LlamaRunner) -> None:
        self._runner = runner
        self._sampler = runner.sampler

    def steps(self, jobs: list[Job], *, prefill: bool) -> tuple[dict[str, float], int]:
        """Returns median seconds by stage and median tokens, of steps that prefill or decode."""
        taken = list(self.each_step(jobs, prefill=prefill))
        medians = [statistics.median(column) for column in zip(*(t for t, _ in taken), strict=True)]
        return dict(zip(STAGES, medians, strict=True)), int(statistics.median(n for _, n in taken))

    def each_step(self, jobs: list[Job], *, prefill: bool) -> Iterator[tuple[list[float], int]]:
        """Yields seconds by stage and the tokens of each step that prefills, or that decodes."""
        scheduler = Scheduler(self._runner, frozenset(), score_budget_bytes=0)
        for key, job in enumerate(jobs):
            scheduler.add(key, [job])
        while not scheduler.idle:
            marks = [time.perf_counter()]
            step = scheduler.schedule(BATCH_TOKENS)
            if step is None:
                break
            marks.append(time.perf_counter())
            self._runner.apply(step.instructions)
            marks.append(time.perf_counter())
            rows = self._runner.decode(step.batch)
            marks.append(time.perf_counter())
            outcomes = evaluate(step, rows, self._sampler)
            marks.append(time.perf_counter())
            computes_prompts = any(not span.sequence.generated for span in step.spans)
            scheduler.update(step, outcomes)
            scheduler.take_events()
            marks.append(time.perf_counter())
            if computes_prompts == prefill:
                yield [b - a for a, b in itertools.pairwise(marks)], len(step.batch.tokens)
        self._runner.apply([Trim(slot, 0) for slot in range(self._runner.slots)])


def job(seed: int, *, prompt: int, tokens: int, sampled: bool = False, scored: bool = False) -> Job:
    """Returns a job with a prompt of its own, which shares no prefix with another seed's."""
    sampling = SamplingParams(top_p=0.95) if sampled else SamplingParams(temperature=0)
    ids = tuple(int(i) for i in np.random.default_rng(seed).integers(1000, 20_000, prompt))
    return Job(
        prompt_ids=ids, n=1, max_tokens=tokens, sampling=sampling, seed=seed,
        prompt_logprobs=1 if scored else None,
    )  # fmt: skip


def kinds() -> Mapping[str, tuple[list[Job], bool]]:
    """Returns jobs by the name of what they measure, and whether their prefill counts."""
    sampled = [job(i, prompt=64, tokens=24, sampled=True) for i in range(32)]
    scored = [job(i, prompt=512, tokens=0, scored=True) for i in range(4)]
    return {
        "one greedy stream": ([job(1, prompt=64, tokens=48)], False),
        "2 greedy streams": ([job(i, prompt=64, tokens=48) for i in range(2)], False),
        "4 greedy streams": ([job(i, prompt=64, tokens=48) for i in range(4)], False),
        "8 greedy streams": ([job(i, prompt=64, tokens=48) for i in range(8)], False),
        "32 greedy streams": ([job(i, prompt=64, tokens=24) for i in range(32)], False),
        "32 sampled streams": (sampled, False),
        "prefill": ([job(i, prompt=512, tokens=1) for i in range(4)], True),
        "scoring": (scored, True),
    }


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the embedded model")
    parser.add_argument("--threads", type=int, default=usable_cores())
    args = parser.parse_args()
    path: Path = args.model or embedded_file()
    read, operations = bandwidth(args.threads), arithmetic()
    print(f"memory {read / 1e9:.1f} GB/s, arithmetic {operations / 1e9:.0f} GFLOP/s in float32")
    weights = path.stat().st_size
    with open_runner(path, slots=33, slot_tokens=1024, threads=args.threads) as runner:
        profile = Profile(runner)
        print(f"{'':<20}{'tokens':>7}{'ms':>9}" + "".join(f"{name:>10}" for name in STAGES))
        for name, (jobs, prefill) in kinds().items():
            stages, tokens = profile.steps(jobs, prefill=prefill)
            total = sum(stages.values())
            shares = "".join(f"{100 * stages[stage] / total:>9.1f}%" for stage in STAGES)
            print(
                f"{name:<20}{tokens:>7}{1e3 * total:>9.1f}{shares}   weights read at "
                f"{weights / stages['decode'] / 1e9:.1f} GB/s"
            )


if __name__ == "__main__":
    main()
