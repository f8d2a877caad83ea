"""Compares ways to fill in a middle: a search, the tokens for it, and what ignores a suffix.

    python benchmarks/infill_any.py --model FILE --code FILE.jsonl [--text FILE.txt]
        [--every] [--start N] [--items N] [--threads N]

The ways: ``without`` continues the prompt alone; ``appended`` continues prompt and suffix;
``before`` continues the prompt behind the suffix; ``search`` is ``suffix`` on a model without
tokens for it; ``tokens`` is ``suffix`` on a model that has them. The first three are cut to the
first line, or sentence, that is not empty. All are greedy. A line of the code file is ``{"prompt",
"suffix", "answer", "test", "entry_point"}``; of the text file, one sentence in the middle of each
long paragraph is masked, or with ``--every`` each sentence between two others. Behind a similarity
stands how much more similar the search is on the same items, with the standard error. The tests of
the code run in child processes with limits but without a sandbox, so use only files that you trust.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.service import CompletionService
from afterword.core.limits import Limits
from afterword.engine.llama.engine import open_engine
from afterword.engine.llama.loading import EngineOptions

TOKENS = 32
CONTEXT_TOKENS = 2048
LIMITS = Limits(infill_s=10**6)
TEST_LIMIT_S = 10
TEST_MEMORY_BYTES = 2 << 30
SENTENCE = re.compile(r"(?<= \.) ")
Item = dict[str, Any]


class Model:
    """A model in this process, as the server would serve it."""

    def __init__(self, path: Path, threads: int) -> None:
        options = EngineOptions(ctx=CONTEXT_TOKENS, threads=threads, probe=False)
        self.engine = open_engine(path, digest="", name=path.stem, options=options)
        self.has_tokens = self.engine.tokenizer.infill is not None
        models = [ServedModel("with", self.engine, 0), ServedModel("bare", Bare(self.engine), 0)]
        self._service = CompletionService(
            Catalog(models), LIMITS, clock=time.time, entropy=os.urandom
        )

    async def complete(self, **body: Any) -> Any:  # noqa: ANN401 - fields of a request
        """Returns the answer."""
        plan = await self._service.plan(json.dumps({"temperature": 0, **body}).encode())
        async with self._service.open(plan) as answer:
            return await answer.completion()

    async def logprob(self, text: str) -> float:
        """Returns the log-probability of a text behind its first token."""
        answer = await self.complete(model="with", prompt=text, max_tokens=0, echo=True, logprobs=0)
        return sum(value or 0.0 for value in answer.choices[0].logprobs.token_logprobs)


class Bare:
    """An engine whose tokenizer has no fill-in-the-middle tokens."""

    infill = None

    def __init__(self, inner: Any) -> None:  # noqa: ANN401 - an engine or its tokenizer
        self._inner = inner

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the inner attribute
        found = getattr(self._inner, name)
        return Bare(found) if name == "tokenizer" else found

    async def prepare(self, texts: Any) -> Any:  # noqa: ANN401 - the protocol
        """See ``Tokenizer``."""
        await self._inner.prepare(texts)
        return self


def first_part(text: str, item: Item) -> str:
    """Returns the first line, or sentence, that is not empty."""
    line = next((line for line in text.split("\n") if line.strip()), "")
    return line if "test" in item else SENTENCE.split(line)[0]


async def fill(model: Model, way: str, item: Item) -> str:
    """Returns the middle that a way finds."""
    prompt, suffix = item["prompt"], item["suffix"]
    if way in {"search", "tokens"}:
        name = "bare" if way == "search" else "with"
        answer = await model.complete(model=name, prompt=prompt, suffix=suffix, max_tokens=TOKENS)
        text = str(answer.choices[0].text)
        return text if way == "search" else first_part(text, item)
    texts = {
        "without": prompt,
        "appended": prompt + suffix,
        "before": suffix.strip("\n") + "\n\n" + prompt,
    }
    answer = await model.complete(model="with", prompt=texts[way], max_tokens=TOKENS)
    return first_part(str(answer.choices[0].text), item)


def passes(item: Item, middle: str) -> bool:
    """Whether the program with this middle passes its test."""
    program = (
        f"{item['prompt']}{middle}{item['suffix']}\n{item['test']}\ncheck({item['entry_point']})"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", program],
            check=False, capture_output=True, timeout=TEST_LIMIT_S, preexec_fn=_limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (TEST_MEMORY_BYTES, TEST_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (TEST_LIMIT_S, TEST_LIMIT_S))


def masked(path: Path, *, every: bool) -> list[Item]:
    """Returns sentences with the text around them: of each long paragraph the middle one, or all.

    The first and the last sentence of a paragraph are never masked.
    """
    items = []
    for paragraph in path.read_text("utf-8").split("\n"):
        sentences = SENTENCE.split(paragraph.strip())
        count = len(sentences)
        middle = [count // 2] if count >= 5 else []
        for at in range(1, count - 1) if every else middle:
            if not 30 <= len(sentences[at]) <= 160:
                continue
            before, after = " ".join(sentences[:at]), " ".join(sentences[at + 1 :])
            items.append(
                {
                    "prompt": before[-500:].lstrip(),
                    "suffix": f" {after[:400]}\n",
                    "answer": f" {sentences[at]}",
                }
            )
    return items


def difference(better: list[float], worse: list[float]) -> str:
    """Returns the mean difference of paired values, and its standard error."""
    pairs = [one - other for one, other in zip(better, worse, strict=True)]
    error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float("nan")
    return f"{statistics.fmean(pairs):+.3f} ± {error:.3f}"


async def measure(model: Model, way: str, item: Item) -> list[float]:
    """Returns an item's exact match, similarity, pass@1 and log-probability, and seconds of CPU."""
    started = time.process_time()
    middle = await fill(model, way, item)
    spent = time.process_time() - started
    found, wanted = middle.strip(), item["answer"].strip()
    similarity = difflib.SequenceMatcher(None, found, wanted, autojunk=False).ratio()
    passed = float(passes(item, middle)) if "test" in item else float("nan")
    total = await model.logprob(item["prompt"] + middle + item["suffix"])
    return [float(found == wanted), similarity, passed, total, spent]


async def run(args: argparse.Namespace) -> None:
    """Measure every way on each item, and print a line after each item."""
    items: list[Item] = []
    if args.code is not None:
        items = [json.loads(line) for line in args.code.read_text("utf-8").splitlines()]
    else:
        items = masked(args.text, every=args.every)
    model = Model(args.model, args.threads)
    ways = ["without", "appended", "before", "search", *(["tokens"] if model.has_tokens else [])]
    rows: dict[str, list[list[float]]] = {way: [] for way in ways}
    for number, item in enumerate(items[args.start : args.start + args.items], 1):
        for way in ways:
            rows[way].append(await measure(model, way, item))
        print(f"{number} items of {args.model.stem}", flush=True)
        similar = {way: [row[1] for row in rows[way]] for way in ways}
        for way in ways:
            means = [statistics.fmean(column) for column in zip(*rows[way], strict=True)]
            less = difference(similar["search"], similar[way])
            print(
                f"  {way:<9} exact {means[0]:.3f}  similarity {means[1]:.3f}"
                f" (search {less})  pass@1 {means[2]:.3f}"
                f"  log-probability {means[3]:.1f}  CPU {means[4]:.1f} s",
                flush=True,
            )
    await model.engine.aclose()


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--code", type=Path)
    group.add_argument("--text", type=Path)
    parser.add_argument("--every", action="store_true", help="mask each sentence of a text in turn")
    parser.add_argument("--start", type=int, default=40, help="the items before it are for tuning")
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
