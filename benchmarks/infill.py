"""Compares greedy infill of masked lines with llama-server's ``/infill``: exact match and pass@1.

``python benchmarks/infill.py FILE.jsonl --model FILE --peers FOLDER``; a line of the file is
``{"prompt", "suffix", "answer", "test", "entry_point"}``. The benchmark runs the tests of the
file in child processes with limits but without a sandbox, so use it only on files that you trust.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import tests_path  # noqa: F401 - where support is
from infill_any import passes
from run import serve_command
from support.processes import free_port, running
from workloads import post

TOKENS = 64


def ours(port: int, item: dict[str, Any]) -> str:
    """Returns the first line that Afterword puts between prompt and suffix."""
    body = {
        "model": "bench", "prompt": item["prompt"], "suffix": item["suffix"],
        "max_tokens": TOKENS, "temperature": 0, "stop": "\n",
    }  # fmt: skip
    return str(post(port, "/v1/completions", body)["choices"][0]["text"])


def theirs(port: int, item: dict[str, Any]) -> str:
    """Returns the first line that llama-server puts there."""
    body = {
        "input_prefix": item["prompt"], "input_suffix": item["suffix"], "n_predict": TOKENS,
        "temperature": 0, "stop": ["\n"],
    }  # fmt: skip
    return str(post(port, "/infill", body)["content"])


def report(
    name: str, items: list[dict[str, Any]], fill: Callable[[dict[str, Any]], str]
) -> list[str]:
    """Print one line of figures, and return the infilled lines."""
    lines = [fill(item) for item in items]
    exact = sum(
        line.strip() == item["answer"].strip() for line, item in zip(lines, items, strict=True)
    )
    passed = sum(passes(item, line) for line, item in zip(lines, items, strict=True))
    count = len(items)
    print(f"{name:<14} exact match {exact / count:.3f}  pass@1 {passed / count:.3f}", flush=True)
    return lines


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--peers", type=Path, help="folder of llama-server")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--kv", choices=("exact", "fast"), default="exact")
    args = parser.parse_args()
    items = [json.loads(line) for line in args.file.read_text("utf-8").splitlines()]
    port = free_port()
    with running(serve_command(args.model, port, args, 1), port):
        mine = report("afterword", items, lambda item: ours(port, item))
    if args.peers is None:
        return
    port = free_port()
    command = peers.llama_server(
        args.peers, args.model, port, threads=args.threads, slots=1, ctx=args.ctx
    )
    with running(command, port):
        other = report("llama-server", items, lambda item: theirs(port, item))
    print(f"the same line: {sum(a == b for a, b in zip(mine, other, strict=True))} of {len(items)}")


if __name__ == "__main__":
    main()
