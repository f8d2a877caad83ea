"""Measures streams behind long contexts as ratios to llama-server, in turn.

``python benchmarks/contexts.py --peers FOLDER [--model FILE] [--words 1000 4000 7700]``. The folder
of peers has llama-server.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tests_path  # noqa: F401 - where support is
import workloads
from afterword.core.machine import usable_cores
from run import line, medians_in_turn, rate
from servers import Servers
from support.load import stream_all

TOKENS = 64
DRAFTLESS = "--no-prompt-lookup"
"""Some of the texts repeat themselves; what is measured here is attention."""
STREAMS = 8
STREAM_WORDS = 3900
GOALS = {1000: ">= 1.3", 4000: ">= 1.8", 7700: ">= 2.5"}


def ms_a_token(port: int, requests: Sequence[dict[str, Any]]) -> float:
    """Returns the milliseconds between tokens of all streams together."""
    return 1e3 / rate(stream_all(port, requests))


def one_stream(servers: Servers, words: int, rounds: int) -> None:
    """Print the first token of a cold prompt, then the speed of a sampled stream behind it."""
    request = workloads.sampled(words, prompt_words=words, tokens=TOKENS)
    mine = servers.ours(DRAFTLESS, slots=1, ctx=8192)
    with mine as ours, servers.llama_server(slots=1, ctx=8192) as peer:
        cold = [stream_all(port, [request])[0] for port in (ours, peer)]
        took, behind = medians_in_turn(
            lambda port, _seed: ms_a_token(port, [request]), (ours, peer), rounds
        )
    first, theirs = (timed.first - timed.started for timed in cold)
    line(f"first token of {words} words, s | llama-server", f"{first:.2f}", f"{theirs:.2f}",
         theirs / first, ">= 3" if words == max(GOALS) else "")  # fmt: skip
    line(f"one stream behind {words} words, ms | llama-server", f"{took:.1f}", f"{behind:.1f}",
         behind / took, GOALS.get(words, ""))  # fmt: skip


def several_streams(servers: Servers, rounds: int) -> None:
    """Print the speed of sampled streams, each behind a long prompt of its own, computed before."""
    requests = [
        workloads.sampled(i, prompt_words=STREAM_WORDS, tokens=TOKENS) for i in range(STREAMS)
    ]
    mine = servers.ours(DRAFTLESS, slots=STREAMS, ctx=4608)
    with mine as ours, servers.llama_server(slots=STREAMS, ctx=4608) as peer:
        for port in (ours, peer):
            stream_all(port, requests)
        took, theirs = medians_in_turn(
            lambda port, _seed: ms_a_token(port, requests), (ours, peer), rounds
        )
    line(f"{STREAMS} streams behind {STREAM_WORDS} words, ms a token | llama-server",
         f"{took:.1f}", f"{theirs:.1f}", theirs / took, ">= 2")  # fmt: skip


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the embedded model")
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--kv", choices=("exact", "fast"), default="exact")
    parser.add_argument("--words", type=int, nargs="+", default=list(GOALS))
    parser.add_argument("--streams", action="store_true", help="also eight streams")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    servers = Servers(args)
    for words in args.words:
        one_stream(servers, words, args.rounds)
    if args.streams:
        several_streams(servers, args.rounds)


if __name__ == "__main__":
    main()
