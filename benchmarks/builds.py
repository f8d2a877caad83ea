"""Compares builds of the native half: milliseconds of each kind of step, and bits of the logits.

``python benchmarks/builds.py NAME=FOLDER[:VARIANT[:KERNELS]] ... [--model FILE] [--rounds 5]
[--kinds KIND ...]`` measures the builds step by step in turn, each in a process of its own. It
prints the median milliseconds of a step, and the median of the ratios of a step to the same step of
the first build, a moment before or after: other work on the machine then slows both.
``FOLDER`` has the libraries (``lib`` of the package ``afterword_native``). See docs/native.md.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

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
END = "end"
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


def serve_steps(path: Path, threads: int) -> None:
    """Prints this build's bits, then the milliseconds of a step for each line that it reads."""
    multiply_row_by_row()
    with open_runner(path, slots=33, slot_tokens=1024, threads=threads) as runner:
        profile = Profile(runner)
        print(bits(runner, HASHED_JOBS), flush=True)
        for line in sys.stdin:
            jobs, prefill = kinds()[line.strip()]
            for seconds, _ in profile.each_step(jobs, prefill=prefill):
                print(1e3 * sum(seconds), flush=True)
                sys.stdin.readline()
            print(END, flush=True)


class Build:
    """A build in a process of its own, which computes a step when it is told to."""

    def __init__(self, build: str, command: list[str]) -> None:
        folder, variant, kernels, *_ = [*build.split(":"), "", ""]
        chosen = {"AFTERWORD_NATIVE_PATH": folder, "AFTERWORD_NATIVE_VARIANT": variant}
        if kernels:
            chosen["AFTERWORD_KERNELS"] = kernels
        self._process = subprocess.Popen(
            command, env=os.environ | chosen, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._stdin = cast("IO[str]", self._process.stdin)
        self._stdout = cast("IO[str]", self._process.stdout)
        self.bits = self._read()

    def step(self, line: str) -> float | None:
        """Returns the milliseconds of the next step, of the kind ``line`` when it is the first.

        Returns None after the last step of a kind.
        """
        self._stdin.write(f"{line}\n")
        answer = self._read()
        return None if answer == END else float(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> str:
        line = self._stdout.readline()
        if not line:
            raise RuntimeError("a build's process has ended")
        return line.strip()


def steps_in_turn(builds: list[Build], kind: str) -> Iterator[list[float]]:
    """Yields the milliseconds of one step of each build, which take turns at being the first."""
    order = list(range(len(builds)))
    while True:
        taken = {i: builds[i].step(kind) for i in order}
        found = [ms for i in range(len(builds)) if (ms := taken[i]) is not None]
        if len(found) < len(builds):
            return
        yield found
        order.append(order.pop(0))


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("builds", nargs="*", metavar="NAME=FOLDER[:VARIANT[:KERNELS]]")
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the embedded model")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--kinds", nargs="+", choices=kinds(), default=list(kinds()), metavar="KIND"
    )
    args = parser.parse_args()
    if not args.builds:
        serve_steps(args.model or embedded_file(), args.threads)
        return
    command = [sys.executable, __file__, "--threads", str(args.threads)]
    command += ["--model", str(args.model)] if args.model else []
    named = dict(build.split("=", 1) for build in args.builds)
    builds = [Build(build, command) for build in named.values()]
    print(f"{'':<20}{'steps':>6}" + "".join(f"{name:>20}" for name in named))
    for kind in args.kinds:
        taken = [ms for _ in range(args.rounds) for ms in steps_in_turn(builds, kind)]
        print(
            f"{kind:<20}{len(taken):>6}"
            + "".join(
                f"{statistics.median(ms):>11.2f} ms "
                f"{statistics.median(step[i] / step[0] for step in taken):5.3f}"
                for i, ms in enumerate(zip(*taken, strict=True))
            ),
            flush=True,
        )
    print(f"{BITS:<26}" + "".join(f"{build.bits:>20}" for build in builds))
    for build in builds:
        build.close()


if __name__ == "__main__":
    main()
