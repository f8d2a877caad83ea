"""Scores multiple choices with lm_eval's own transformers backend, on the weights of a GGUF file.

``PEERS/lmeval/bin/python benchmarks/lm_eval_peer.py FILE.jsonl --model FILE.gguf`` runs in its own
environment with torch, transformers, gguf and lm_eval, and without this project. transformers
reads and dequantizes the GGUF file itself, so nothing is downloaded. The script scores the first
items with each number format and batch size that they fill, twice in turn, then the whole file
with the fastest of these. Standard output is one JSON object; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # read at the imports below

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from processes import available_bytes, cores

DTYPES = ("float32", "bfloat16")
BATCHES = (1, 8, 32, 64)
ROUNDS = 2
COPIES = 3
"""Copies of a batch's logits in memory: the model's, their log-softmax, and a temporary one."""


class Backend:
    """lm_eval's HFLM on one file, in one number format."""

    def __init__(self, file: Path, dtype: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        self._model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=getattr(torch, dtype),
            quantization_config=GgufConfig(dequantize=True),
        ).eval()

    def rows(self, items: Sequence[dict[str, Any]]) -> int:
        """Returns how many rows lm_eval batches; one-token choices of a context are one row."""
        single = all(len(self._tokenizer.encode(c)) == 1 for i in items for c in i["choices"])
        return len(items) if single else len(requests(items))

    def fits(self, items: Sequence[dict[str, Any]], batch: int) -> bool:
        """Whether a batch's logits take less than half of the free memory."""
        longest = max(
            len(self._tokenizer.encode(item["context"] + choice))
            for item in items
            for choice in item["choices"]
        )
        each = longest * self._model.config.vocab_size * self._model.dtype.itemsize
        return bool(COPIES * min(batch, self.rows(items)) * each < 0.5 * available_bytes())

    def score(self, items: Sequence[dict[str, Any]], batch: int) -> tuple[float, list[float]]:
        """Returns the seconds taken, and the sums of the choices' log-probabilities."""
        lm = HFLM(pretrained=self._model, tokenizer=self._tokenizer, batch_size=batch, device="cpu")
        asked = requests(items)
        started = time.perf_counter()
        answers = lm.loglikelihood(asked, disable_tqdm=True)
        return time.perf_counter() - started, [value for value, _greedy in answers]


def requests(items: Sequence[dict[str, Any]]) -> list[Instance]:
    """Returns the requests of lm_eval's multiple-choice tasks: each choice after its context."""
    return [
        Instance("loglikelihood", item, (item["context"], choice), at)
        for item in items
        for at, choice in enumerate(item["choices"])
    ]


def quickest(
    backends: Mapping[str, Backend], items: Sequence[dict[str, Any]], few: int
) -> tuple[str, int, list[float]]:
    """Returns the number format and batch size that score the first items fastest.

    Also returns the float32 sums of these items.
    """
    first = items[:few]
    took: dict[tuple[str, int], float] = {}
    exact: list[float] = []
    for _, dtype, batch in product(range(ROUNDS), DTYPES, BATCHES):
        backend = backends[dtype]
        if batch > backend.rows(first) or not backend.fits(items, batch):
            continue
        took_s, sums = backend.score(first, batch)
        took[dtype, batch] = min(took_s, took.get((dtype, batch), took_s))
        if dtype == "float32":
            exact = sums
        print(f"{dtype}, {batch} a batch: {len(first) / took_s:.2f} items/s of {len(first)}",
              file=sys.stderr, flush=True)  # fmt: skip
    return *min(took, key=took.__getitem__), exact


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=len(cores()))
    parser.add_argument("--items", type=int, help="number of items to score; default: all")
    parser.add_argument("--few", type=int, default=20, help="number of items to try settings with")
    args = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    with args.file.open(encoding="utf-8") as lines:
        items = [json.loads(line) for line in islice(lines, args.items)]
    backends = {dtype: Backend(args.model, dtype) for dtype in DTYPES}
    for backend in backends.values():
        backend.score(items[:1], 1)  # warm up
    dtype, batch, exact = quickest(backends, items, args.few)
    took_s, _ = backends[dtype].score(items, batch)
    found = {"dtype": dtype, "batch": batch, "took_s": took_s, "float32_sums": exact}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
