"""What each stage of the sampler costs: microseconds a token at two sizes of vocabulary.

    python benchmarks/sampling.py [--model FILE]

Rows are random. The mask of a JSON Schema needs a real vocabulary, so its row is there with
``--model`` only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from afterword.core.job import OutputGrammar, Repetition, SamplingParams
from afterword.engine.grammar import GrammarMatcher, Grammars
from afterword.engine.history import History
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.context import exponentials
from afterword.engine.llama.vocab import LlamaTokenizer
from afterword.engine.sampler import Sampler

VOCABULARIES = (49_152, 151_936)
ROUNDS = 200
PROMPT_TOKENS = 2000
DRY = Repetition(multiplier=0.8, base=1.75, allowed_length=2, window=8192, breakers={13: ((),)})
STAGES = {
    "greedy": SamplingParams(temperature=0),
    "temperature": SamplingParams(temperature=0.8),
    "top_p": SamplingParams(top_p=0.95),
    "typical_p": SamplingParams(typical_p=0.9),
    "xtc": SamplingParams(xtc_probability=1.0),
    "repetition_penalty": SamplingParams(temperature=0, repetition_penalty=1.1),
    "dry": SamplingParams(temperature=0, repetition=DRY),
    "allowed_token_ids": SamplingParams(temperature=0, allowed_ids=tuple(range(1000))),
}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"}, "age": {"type": "integer"},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}},
    },
    "required": ["name", "age", "email", "tags"],
    "additionalProperties": False,
}  # fmt: skip
TEXT = '{ "name": "Bob Smith the third", "age": 42, "email": "bob@example.com", "tags": ["a", "b"]}'


def median_us(work: Callable[[], object]) -> float:
    """Returns the median of many runs."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def stage_us(vocabulary: int, params: SamplingParams) -> float:
    """Returns what one draw costs, with a history of 2,000 tokens."""
    rng = np.random.default_rng(1)
    row = rng.normal(0, 3, vocabulary).astype(np.float32)
    sampler = Sampler(vocabulary, exponentials)
    history = None
    if History.needed(params):
        history = History(rng.integers(0, 400, PROMPT_TOKENS).astype(np.int32), params)
        history.accept(7)
    allowed = np.array(params.allowed_ids) if params.allowed_ids else None
    return median_us(
        lambda: sampler.draw(row, params, 0.5, second=0.1, history=history, allowed=allowed)
    )


def mask_us(path: Path) -> tuple[int, float, float]:
    """Returns the vocabulary, and the median cost of a mask and of a draw under it."""
    model = LlamaModel(path)
    tokenizer = LlamaTokenizer(model)
    vocabulary = len(tokenizer.pieces)
    grammar = OutputGrammar("json", json.dumps(SCHEMA))
    compiled = Grammars(tokenizer).constraint(grammar).compiled
    sampler = Sampler(vocabulary, exponentials)
    row = np.random.default_rng(1).normal(0, 3, vocabulary).astype(np.float32)
    masks, draws = [], []
    for _ in range(10):
        state: GrammarMatcher = compiled.follow()
        for token in tokenizer.encode(TEXT, parse_special=False):
            start = time.perf_counter()
            mask = state.mask()
            made = time.perf_counter()
            sampler.draw(row, SamplingParams(temperature=0), 0, mask=mask)
            draws.append(time.perf_counter() - made)
            masks.append(made - start)
            state.accept(token)
    model.close()
    return vocabulary, 1e6 * statistics.median(masks), 1e6 * statistics.median(draws)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF file, for the row of the mask")
    arguments = parser.parse_args()
    print(f"{'µs a token':<22}" + "".join(f"{size:>10,}" for size in VOCABULARIES))
    for name, params in STAGES.items():
        costs = [stage_us(size, params) for size in VOCABULARIES]
        print(f"{name:<22}" + "".join(f"{cost:>10.0f}" for cost in costs))
    if arguments.model:
        vocabulary, mask, draw = mask_us(arguments.model)
        print(
            f"mask of a JSON Schema, {vocabulary:,}: {mask:.0f}; greedy draw under it: {draw:.0f}"
        )


if __name__ == "__main__":
    main()
