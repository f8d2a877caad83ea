"""Measures figures as ratios to peers: ``make bench``, or ``python benchmarks/run.py --help``."""

from __future__ import annotations

import argparse
import operator
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peers
import tests_path  # noqa: F401 - where support is
from afterword.core.machine import usable_cores
from processes import main_thread_s, resident_bytes
from support import load
from support.embedded import embedded_file
from support.processes import free_port, running

TEXT = "The harbour was quiet that morning, and nobody had yet seen the ship. "
TOKENS = 128
PROMPT = 64
MISSES = {">=": operator.lt, "<=": operator.gt, "<": operator.ge}
"""By the relation of a goal: what a value that misses it is to the goal's number."""
DATA = tempfile.TemporaryDirectory(prefix="afterword-bench-")
"""The data folder of every server here: a ledger of this machine's user would cost time."""


def body(model: str, stream: int, *, prompt_words: int = 48) -> dict[str, Any]:
    """Returns the body of a greedy stream that never ends early; each has its own prompt."""
    words = (f"{stream} " + TEXT * 20).split()[:prompt_words]
    return {
        "model": model,
        "prompt": " ".join(words),
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def rate(timed: list[load.Timed]) -> float:
    """Returns tokens a second of all streams while they generate, without the first tokens."""
    tokens = sum(t.tokens - 1 for t in timed)
    return tokens / (max(t.last for t in timed) - min(t.first for t in timed))


def missed(value: float, goal: str) -> str:
    """Returns a mark for a value that misses a goal, such as ``>= 0.9``; "" is no goal.

    What is not a number misses none.
    """
    if not goal:
        return ""
    relation, _, bound = goal.partition(" ")
    return "  <- missed" if MISSES[relation](value, float(bound)) else ""


def line(name: str, ours: str, peer: str, ratio: float | None, goal: str) -> None:
    """Print one row of the table. Without a ratio the goal is one of ``ours``."""
    shown = "" if ratio is None else f"{ratio:.2f}"
    mark = missed(float(ours) if ratio is None else ratio, goal)
    print(f"{name:<44} {ours:>14} {peer:>14} {shown:>7}  {goal}{mark}", flush=True)


def medians_in_turn(
    measure: Callable[[int, int], float], ports: Sequence[int], rounds: int
) -> list[float]:
    """Returns each server's median. A round has a seed, and measures one server after another.

    In turn, because the speed of a machine changes over time.
    """
    measured = [[measure(port, seed) for port in ports] for seed in range(rounds)]
    return [statistics.median(each) for each in zip(*measured, strict=True)]


def serve_command(model: Path, port: int, args: argparse.Namespace, slots: int) -> list[str]:
    """Returns the command that serves a file."""
    return [
        str(Path(sys.executable).parent / "afterword"), "serve", "--model", f"bench={model}",
        "--port", str(port), "--ctx", str(args.ctx), "--max-sequences", str(slots),
        "--threads", str(args.threads), "--kv", args.kv, "--data-dir", DATA.name,
    ]  # fmt: skip


def streams(model: Path, args: argparse.Namespace) -> None:
    """Print speed of one and eight streams over HTTP, Python's CPU time, and memory."""
    one, eight, python_us = [], [], []
    port = free_port()
    with running(serve_command(model, port, args, 8), port) as pid:
        load.stream_all(port, [body("bench", 99)])
        for round_ in range(args.rounds):
            one.append(rate(load.stream_all(port, [body("bench", round_)])))
            before = main_thread_s(pid)
            timed = load.stream_all(port, [body("bench", 10 * round_ + i) for i in range(8)])
            spent_s = main_thread_s(pid) - before
            python_us.append(spent_s / sum(t.tokens for t in timed) * 1e6)
            eight.append(rate(timed))
        memory = resident_bytes(pid)
    ours_one, ours_eight = statistics.median(one), statistics.median(eight)
    if args.peers is None:
        line("one greedy stream, tokens/s", f"{ours_one:.1f}", "-", None, "")
        line("8 greedy streams, tokens/s", f"{ours_eight:.1f}", "-", None, "")
    else:
        peer = peers.llama_bench(args.peers, model, threads=args.threads, tokens=TOKENS)
        line("one greedy stream, tokens/s | llama-bench", f"{ours_one:.1f}", f"{peer:.1f}",
             ours_one / peer, ">= 0.90")  # fmt: skip
        peer = peers.llama_batched_bench(
            args.peers, model, threads=args.threads, streams=8, prompt=PROMPT, tokens=TOKENS
        )
        line("8 greedy streams, tokens/s | batched-bench", f"{ours_eight:.1f}", f"{peer:.1f}",
             ours_eight / peer, ">= 0.85")  # fmt: skip
    line("event loop's CPU per token at 8 streams, us", f"{statistics.median(python_us):.0f}",
         "", None, "< 60")  # fmt: skip
    if args.peers is not None:
        theirs = llama_server_memory(model, args)
        line("resident memory, MB | llama-server", f"{memory / 1e6:.0f}", f"{theirs / 1e6:.0f}",
             memory / theirs, "<= 1.25")  # fmt: skip


def llama_server_memory(model: Path, args: argparse.Namespace) -> int:
    """Returns the resident bytes of llama-server with equal context and slots, after 8 streams."""
    port = free_port()
    command = peers.llama_server(
        args.peers, model, port, threads=args.threads, slots=8, ctx=args.ctx
    )
    with running(command, port) as pid:
        load.stream_all(port, [body("bench", i) for i in range(8)])
        return resident_bytes(pid)


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the embedded model")
    parser.add_argument("--peers", type=Path, help="folder of llama-server and llama-bench")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--ctx", type=int, default=2048, help="tokens of context for each sequence")
    parser.add_argument("--kv", choices=("exact", "fast"), default="exact")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model = args.model or embedded_file()
    print(f"{'':<44} {'afterword':>14} {'peer':>14} {'ratio':>7}  goal")
    streams(model, args)


if __name__ == "__main__":
    main()
