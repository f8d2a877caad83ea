"""Measures how much of many prefixes a server keeps, and what it computes them in.

``python benchmarks/prefixes.py --data FOLDER [--headers 57 500] [--tokens 300 600]``. The folder
has ``wikitext_a.txt``, of which headers are made. Each header is asked three questions, and all
headers take turns, as the subjects of MMLU do in harnesses that sort by length. What is cached is
compared with the part of the headers that the server's memory holds at once.
"""

from __future__ import annotations

import argparse
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import tests_path  # noqa: F401 - where support is
import workloads
from afterword.core.machine import usable_cores
from run import line, serve_command
from support.embedded import embedded_file
from support.processes import free_port, running

QUESTIONS = 3
QUESTION_TOKENS = 40
CLIENTS = 4
PREFILLED = 16
"""Prompts that measure the speed of prefill."""
BLOCK_TOKENS = 64


class Asked(NamedTuple):
    """Tokens of all prompts that came from the cache, the most that could, and the seconds."""

    cached: int
    cacheable: int
    took_s: float


def prompts(port: int, data: Path, headers: int, tokens: int) -> list[list[int]]:
    """Returns the prompts as token ids: each header with its first question, then the second ..."""
    needed = headers * (tokens + QUESTIONS * QUESTION_TOKENS)
    text = (data / "wikitext_a.txt").read_text("utf-8")
    ids: list[int] = []
    # A server limits what it tokenises at once.
    for at in range(0, len(text), 50_000):
        ids += workloads.tokenize(port, text[at : at + 50_000])
        if len(ids) >= needed:
            break
    # A text that is too short is read again from another place.
    ids += [token for shift in range(1, needed // len(ids) + 1) for token in ids[7 * shift :]]
    heads = [ids[at * tokens : (at + 1) * tokens] for at in range(headers)]
    rest = ids[headers * tokens :]
    return [
        [*head, *rest[at * QUESTION_TOKENS : (at + 1) * QUESTION_TOKENS]]
        for question in range(QUESTIONS)
        for at, head in enumerate(heads, question * headers)
    ]


def ask(port: int, asked: Sequence[Sequence[int]], headers: int, tokens: int) -> Asked:
    """Ask all prompts in order, four at a time, for one token each."""

    def one(prompt: Sequence[int]) -> int:
        body = {"model": "bench", "prompt": prompt, "max_tokens": 1, "temperature": 0}
        usage = workloads.post(port, "/v1/completions", body)["usage"]
        cached: int = usage["prompt_tokens_details"]["cached_tokens"]
        return cached

    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        cached = sum(clients.map(one, asked))
    took_s = time.perf_counter() - started
    return Asked(cached, headers * tokens * (QUESTIONS - 1), took_s)


def prefill_rate(port: int, tokens: int) -> float:
    """Returns the tokens a second of new prompts of this length, asked as the others are.

    Those of a first time are not counted: a server computes them while its memory is new.
    """
    for seed in (1, 2):
        words = workloads.text(PREFILLED * tokens, seed)
        ids = workloads.tokenize(port, words)[: PREFILLED * tokens]
        cut = [ids[at : at + tokens] for at in range(0, len(ids) - tokens + 1, tokens)]
        took_s = ask(port, cut, 0, 0).took_s
    return len(cut) * tokens / took_s


def held_part(port: int, headers: int, tokens: int) -> float:
    """Returns the part of the headers that the server's memory holds at once, in whole blocks."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        metrics = answer.read().decode()
    total = float(metrics.split("\nafterword_engine_cells_total{", 1)[1].split()[1])
    return min(total / (headers * -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS), 1.0)


def main() -> None:
    """Parse arguments and print a row for each number of headers and of tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of wikitext_a.txt")
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the embedded model")
    parser.add_argument("--headers", type=int, nargs="+", default=[57, 500])
    parser.add_argument("--tokens", type=int, nargs="+", default=[300, 600])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--kv-mib", type=int, help="default: the server's own")
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--kv", choices=("exact", "fast"), default="exact")
    args = parser.parse_args()
    model = args.model or embedded_file()
    for tokens in args.tokens:
        for headers in args.headers:
            port = free_port()
            command = serve_command(model, port, args, 64)
            if args.kv_mib:
                command += ["--kv-mib", str(args.kv_mib)]
            with running(command, port):
                asked = prompts(port, args.data, headers, tokens)
                rate = prefill_rate(port, tokens + QUESTION_TOKENS)
                found = ask(port, asked, headers, tokens)
                held = held_part(port, headers, tokens)
            least_s = workloads.unique_tokens(asked) / rate
            name = f"{headers} headers of {tokens} tokens"
            part = found.cached / found.cacheable
            goals = (">= 0.98", "<= 1.15") if held == 1 else ("", "")
            line(f"{name}: cached | held at once", f"{part:.3f}", f"{held:.3f}", part / held,
                 goals[0])  # fmt: skip
            line(f"{name}: time | unique tokens / prefill", f"{found.took_s:.1f}",
                 f"{least_s:.1f}", found.took_s / least_s, goals[1])  # fmt: skip


if __name__ == "__main__":
    main()
