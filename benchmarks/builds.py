"""Compares builds of the native half: milliseconds of each kind of step, and bits of the logits.

``python benchmarks/builds.py NAME=FOLDER[:VARIANT] ... [--model FILE] [--rounds 5]`` measures the
builds in turn, each in a process of its own, and prints medians, with ratios to the first build.
``FOLDER`` has the libraries (``lib`` of the package ``afterword_native``). See docs/native.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import tests_path  # noqa: F401 - where support is
from afterword.core.job import Job
from afterword.core.machine import usable_cores
from afterword.engine.batching.outcome import evaluate
from afterword.engine.batching.runner import Trim
from afterword.engine.batching.scheduler import Scheduler
from afterword.engine.llama.binding import multiply_row_by_row
from afterword.engine.llama.runner import BATCH_TOKENS, LlamaRunner
from stages import Profile, job, kinds
from support.embedded import embedded_file
from support.runners import open_runner

BITS = "bits"
HASHED_JOBS = [job(7, prompt=300, tokens=4), *(job(i, prompt=30 + i, tokens=8) for i in range(8))]


def bits(runner: LlamaRunner, jobs: list[Job]) -> str:
    """Returns a digest of all logits of some jobs, which run together."""
    digest = hashlib.sha256()
    sampler = runner.sampler
    scheduler = Scheduler(runner, frozenset(), score_budget_bytes=0)
    for key, one in enumerate(jobs):
        scheduler.add(key, [one])
    while (step := scheduler.schedule(BATCH_TOKENS)) is not None:
        runner.apply(step.instructions)
        rows = runner.decode(step.batch)
        digest.update(rows.tobytes())
        scheduler.update(step, evaluate(step, rows, sampler))
        scheduler.take_events()
    runner.apply([Trim(slot, 0) for slot in range(runner.slots)])
    return digest.hexdigest()[:12]


def measure(path: Path, threads: int) -> Mapping[str, float | str]:
    """Returns milliseconds by kind of step with this process's build, and its bits."""
    multiply_row_by_row()
    with open_runner(path, slots=33, slot_tokens=1024, threads=threads) as runner:
        profile = Profile(runner)
        found: dict[str, float | str] = {BITS: bits(runner, HASHED_JOBS)}
        for name, (jobs, prefill) in kinds().items():
            stages, _ = profile.steps(jobs, prefill=prefill)
            found[name] = 1e3 * sum(stages.values())
    return found


def environment(build: str) -> Mapping[str, str]:
    """Returns the environment of a process with a build, ``FOLDER[:VARIANT]``."""
    folder, _, variant = build.partition(":")
    return {**os.environ, "AFTERWORD_NATIVE_PATH": folder, "AFTERWORD_NATIVE_VARIANT": variant}


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("builds", nargs="*", metavar="NAME=FOLDER[:VARIANT]")
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the embedded model")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if not args.builds:
        print(json.dumps(measure(args.model or embedded_file(), args.threads)))
        return
    builds = dict(build.split("=", 1) for build in args.builds)
    command = [sys.executable, __file__, "--threads", str(args.threads)]
    command += ["--model", str(args.model)] if args.model else []
    took: dict[str, list[dict[str, float | str]]] = {name: [] for name in builds}
    for _ in range(args.rounds):
        for name, build in builds.items():
            done = subprocess.run(
                command, env=environment(build), check=True, stdout=subprocess.PIPE
            )
            took[name].append(json.loads(done.stdout))
    first, *_ = builds
    print(f"{'':<20}" + "".join(f"{name:>20}" for name in builds))
    for kind in kinds():
        medians = {
            name: statistics.median(float(one[kind]) for one in runs) for name, runs in took.items()
        }
        print(
            f"{kind:<20}"
            + "".join(f"{ms:>11.2f} ms {ms / medians[first]:5.3f}" for ms in medians.values())
        )
    same = "".join(f"{'/'.join(sorted({str(r[BITS]) for r in rs})):>20}" for rs in took.values())
    print(f"{BITS:<20}{same}")


if __name__ == "__main__":
    main()
