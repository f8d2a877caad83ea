"""Compares the accuracy on multiple-choice files through the endpoint with llama.cpp directly.

``python benchmarks/accuracy.py FILE.jsonl ...``; a line is ``{"context", "choices", "label"}``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tests_path  # noqa: F401 - where support is
from run import serve_command
from support.embedded import embedded_file
from support.processes import free_port, running
from support.reference import Reference
from workloads import post

BATCH = 16


def score(port: int, prompts: Sequence[list[int]], max_tokens: int) -> list[list[float]]:
    """Returns log-probabilities of each prompt's tokens after the first, through the endpoint."""
    body = {
        "model": "bench", "prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": max_tokens,
    }  # fmt: skip
    choices = post(port, "/v1/completions", body)["choices"]
    return [
        choice["logprobs"]["token_logprobs"][1 : len(prompt)]
        for choice, prompt in zip(choices, prompts, strict=True)
    ]


def accuracy(
    items: Sequence[dict[str, Any]], grouped: Sequence[list[float]]
) -> tuple[float, float]:
    """Returns the shares of items whose label has the largest sum, in total and per character."""
    plain = normed = 0
    for item, values in zip(items, grouped, strict=True):
        lengths = [len(choice) for choice in item["choices"]]
        by_character = [value / length for value, length in zip(values, lengths, strict=True)]
        plain += max(range(len(values)), key=values.__getitem__) == item["label"]
        normed += max(range(len(values)), key=by_character.__getitem__) == item["label"]
    return plain / len(items), normed / len(items)


class Questions(NamedTuple):
    """The items of a file; for each choice its tokens, and the position where the choice begins."""

    items: Sequence[dict[str, Any]]
    prompts: Sequence[list[int]]
    begins: Sequence[int]


def read(file: Path, reference: Reference, most: int | None) -> Questions:
    """Returns the first ``most`` items of a file, tokenised; None for all."""
    items = [json.loads(line) for line in file.read_text("utf-8").splitlines()[:most]]
    prompts, begins = [], []
    for item in items:
        for choice in item["choices"]:
            prompts.append(reference.tokenize(item["context"] + choice))
            begins.append(len(reference.tokenize(item["context"])))
    print(f"{file.name}: {len(items)} items, {len(prompts)} prompts")
    return Questions(items, prompts, begins)


def sums(port: int, questions: Questions, max_tokens: int) -> list[float]:
    """Returns the log-probability of each choice, through the endpoint."""
    scored: list[list[float]] = []
    for at in range(0, len(questions.prompts), BATCH):
        scored += score(port, questions.prompts[at : at + BATCH], max_tokens)
    return [sum(v[b - 1 :]) for v, b in zip(scored, questions.begins, strict=True)]


def compare(port: int, reference: Reference, questions: Questions) -> None:
    """Report accuracies by llama.cpp directly and through the endpoint."""
    items, prompts, begins = questions
    direct = []
    for ids, begin in zip(prompts, begins, strict=True):
        rows = reference.log_softmax(ids)
        direct.append(sum(float(rows[i - 1][ids[i]]) for i in range(begin, len(ids))))
    report("direct", items, direct, direct)
    for max_tokens in (0, 1):
        report(
            f"endpoint, max_tokens {max_tokens}", items, sums(port, questions, max_tokens), direct
        )


def report(
    name: str, items: Sequence[dict[str, Any]], ours: list[float], direct: list[float]
) -> None:
    """Print accuracies, the largest difference of a sum, and how many items change their answer."""
    grouped, wanted = group(items, ours), group(items, direct)
    plain, normed = accuracy(items, grouped)
    worst = max(abs(a - b) for a, b in zip(ours, direct, strict=True))
    flipped = sum(a.index(max(a)) != b.index(max(b)) for a, b in zip(grouped, wanted, strict=True))
    chance = sum(1 / len(item["choices"]) for item in items) / len(items)
    print(
        f"  {name:<24} accuracy {plain:.3f}, per character {normed:.3f} (chance {chance:.2f}); "
        f"largest difference of a sum {worst:.1e}, items with another answer {flipped}",
        flush=True,
    )


def group(items: Sequence[dict[str, Any]], flat: Sequence[float]) -> list[list[float]]:
    """Returns sums grouped by item."""
    left = iter(flat)
    return [[next(left) for _ in item["choices"]] for item in items]


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, help="a GGUF file; without it the embedded model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("--kv", choices=("exact", "fast"), default="exact")
    parser.add_argument("--first", type=int, help="number of items of each file; default: all")
    args = parser.parse_args()
    model = args.model or embedded_file()
    reference = Reference(model)
    asked = [read(file, reference, args.first) for file in args.files]
    port = free_port()
    with running(serve_command(model, port, args, 8), port):
        for questions in asked:
            compare(port, reference, questions)
    reference.close()


if __name__ == "__main__":
    main()
