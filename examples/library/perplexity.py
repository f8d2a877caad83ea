"""Perplexity of a corpus: python perplexity.py FILE ... (without files: two short texts)."""

import math
import sys
from pathlib import Path

from afterword import LLM

TEXTS = {
    "English": "The sun rises in the east and sets in the west. Every child knows that.",
    "shuffled": "West east the in sun and rises the the in sets. That child every knows.",
}


def main() -> None:
    # As bytes, because ends of lines are text, too.
    texts = {name: Path(name).read_bytes().decode("utf-8-sig") for name in sys.argv[1:]} or TEXTS
    with LLM("smollm2-135m-instruct") as llm:
        scores = dict(zip(texts, llm.score(list(texts.values())), strict=True))
    for name, score in scores.items():
        print(f"{name:<20} {score.perplexity:10.2f} {score.bits_per_byte:8.3f} bits/byte")
    # Of the whole corpus: the mean over all tokens, not over texts.
    tokens = sum(len(score.tokens) for score in scores.values()) or 1
    nats = sum(abs(score.total_logprob) for score in scores.values())
    size = sum(len(text.encode()) for text in texts.values()) or 1
    whole = math.exp(nats / tokens)
    print(f"{'all':<20} {whole:10.2f} {nats / math.log(2) / size:8.3f} bits/byte")


if __name__ == "__main__":
    main()
