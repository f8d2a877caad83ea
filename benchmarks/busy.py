"""Measures streams while other work runs beside the server, against the fair share of the cores.

``python benchmarks/busy.py [--peers FOLDER] [--loops 0 1 2 4]``. With as many threads as cores, the
fair share of a server beside L endless loops on C cores is C / (C + L): a token should take the
inverse of it longer. Then two servers run at once, against one of them. The folder of peers has
llama-server.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import tests_path  # noqa: F401 - where support is
import workloads
from afterword.core.machine import usable_cores
from run import missed, rate
from servers import Servers
from support.load import stream_all

TOKENS = 48
STREAMS = (1, 32)
GOAL = "<= 1.25"
GOAL_OF_TWO = ">= 0.9"


@contextmanager
def loops(count: int) -> Iterator[None]:
    """Run endless loops, each a process, while the block runs."""
    beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in beside:
            process.kill()
            process.wait()


def ms_a_token(port: int, streams: int, rounds: int) -> float:
    """Returns the median milliseconds between the tokens of one of so many streams."""
    bodies: Sequence[dict[str, Any]] = [
        workloads.sampled(i, prompt_words=16, tokens=TOKENS) for i in range(streams)
    ]
    return statistics.median(
        1e3 * streams / rate(stream_all(port, bodies)) for _ in range(rounds)
    )  # fmt: skip


def measure(name: str, server: AbstractContextManager[int], args: argparse.Namespace) -> None:
    """Print one line for each number of streams and loops."""
    with server as port:
        for streams in STREAMS:
            quiet = ms_a_token(port, streams, args.rounds)
            for count in args.loops:
                with loops(count):
                    took = ms_a_token(port, streams, args.rounds) if count else quiet
                fair = quiet * (args.threads + count) / args.threads
                print(f"{name:<14}{streams:>8}{count:>7}{took:>10.1f}{fair:>10.1f}"
                      f"{took / fair:>8.2f}{missed(took / fair, GOAL)}", flush=True)  # fmt: skip


def two_servers(servers: Servers, args: argparse.Namespace) -> None:
    """Print the tokens a second of two servers at once, as a part of those of one alone."""
    flags = "--no-prompt-lookup"
    with servers.ours(flags, slots=32, ctx=256) as one, servers.ours(
        flags, slots=32, ctx=256
    ) as two, ThreadPoolExecutor(2) as pool:  # fmt: skip
        for streams in STREAMS:
            alone = streams / ms_a_token(one, streams, args.rounds)
            both = pool.map(lambda port: ms_a_token(port, streams, args.rounds), (one, two))  # noqa: B023 - used at once
            together = sum(streams / took for took in both)
            part = together / alone
            print(f"{'two servers':<14}{streams:>8}{part:>8.2f} of one alone   goal: {GOAL_OF_TWO}"
                  f"{missed(part, GOAL_OF_TWO)}", flush=True)  # fmt: skip


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the embedded model")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--kv", choices=("exact", "fast"), default="exact")
    parser.add_argument("--loops", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    servers = Servers(args)
    print(f"{'':<14}{'streams':>8}{'loops':>7}{'ms/token':>10}{'fair':>10}{'part':>8}"
          f"   goal: {GOAL}")  # fmt: skip
    measure("afterword", servers.ours("--no-prompt-lookup", slots=32, ctx=256), args)
    two_servers(servers, args)
    if args.peers:
        measure("llama-server", servers.llama_server(slots=32, ctx=256), args)


if __name__ == "__main__":
    main()
