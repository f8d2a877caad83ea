"""What each stage of the sampler costs: microseconds a token at two sizes of vocabulary.

In native code on one thread, and in numpy, which is the reference.

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
from afterword.engine.llama.native_sampler import make_sampler
from afterword.engine.llama.vocab import LlamaTokenizer
from afterword.engine.row_query import RowQuery
from afterword.engine.sampler import Sampler

VOCABULARIES = (49_152, 151_936)
ROUNDS = 200
PROMPT_TOKENS = 2000
DRY = Repetition(multiplier=0.8, base=1.75, allowed_length=2, window=8192, breakers={13: ((),)})
STAGES = {
    "greedy": SamplingParams(temperature=0),
    "temperature": SamplingParams(temperature=0.8),
    "top_p": SamplingParams(top_p=0.95),
    "min_p": SamplingParams(min_p=0.05),
    "top_k": SamplingParams(top_k=40),
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


def stage_us(sampler: Sampler, vocabulary: int, params: SamplingParams) -> float:
    """Returns what one draw costs, with a history of 2,000 tokens."""
    rng = np.random.default_rng(1)
    row = rng.normal(0, 3, vocabulary).astype(np.float32)
    history = None
    if History.needed(params):
        history = History(rng.integers(0, 400, PROMPT_TOKENS).astype(np.int32), params)
        history.accept(7)
    allowed = np.array(params.allowed_ids) if params.allowed_ids else None

    def draw() -> None:
        changed = None
        if history is not None or allowed is not None:
            changed = sampler.change(row, history=history, allowed=allowed)
        sampler.answer(row[np.newaxis], [RowQuery(0, params, 0.5, 0.1, changed)])

    return median_us(draw)


def mask_us(path: Path) -> tuple[int, float, float]:
    """Returns the vocabulary, and the median cost of a mask and of a draw under it."""
    model = LlamaModel(path)
    tokenizer = LlamaTokenizer(model)
    vocabulary = len(tokenizer.pieces)
    grammar = OutputGrammar("json", json.dumps(SCHEMA))
    compiled = Grammars(tokenizer).constraint(grammar).compiled
    sampler = make_sampler(vocabulary, 1)
    row = np.random.default_rng(1).normal(0, 3, vocabulary).astype(np.float32)
    masks, draws = [], []
    for _ in range(10):
        state: GrammarMatcher = compiled.follow()
        for token in tokenizer.encode(TEXT, parse_special=False):
            start = time.perf_counter()
            mask = state.mask()
            made = time.perf_counter()
            query = RowQuery(
                0, SamplingParams(temperature=0), changed=sampler.change(row, mask=mask)
            )
            sampler.answer(row[np.newaxis], [query])
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
    print(f"{'µs a token':<22}" + "".join(f"{size:>10,}{'numpy':>10}" for size in VOCABULARIES))
    samplers = [
        (sampler, size)
        for size in VOCABULARIES
        for sampler in (make_sampler(size, 1), Sampler(size, exponentials))
    ]
    for name, params in STAGES.items():
        costs = [stage_us(sampler, size, params) for sampler, size in samplers]
        print(f"{name:<22}" + "".join(f"{cost:>10.0f}" for cost in costs))
    if arguments.model:
        vocabulary, mask, draw = mask_us(arguments.model)
        print(
            f"mask of a JSON Schema, {vocabulary:,}: {mask:.0f}; greedy draw under it: {draw:.0f}"
        )


if __name__ == "__main__":
    main()
