"""Types through a file, and measures the time from a keystroke to the suggestion.

``python benchmarks/keystrokes.py --model FILE [--peers FOLDER]``. After every tenth character an
editor asks ``POST /infill`` for a suggestion of 16 tokens. Five characters before that it asked
for another one, whose connection it closes when the next request leaves. What stands behind the
cursor's line is the rest of the file. The figures are the median and the 95th percentile of the
time to the whole suggestion, next to those of llama-server's ``/infill``, one server after the
other. ``--stops`` types only a part, from ``--start`` (a share of the file) on.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import tests_path  # noqa: F401 - where support is
from run import serve_command
from support.processes import free_port, running

EVERY, TOKENS = 10, 16
CUT_OFF_AFTER_S = 0.02
TEXT = Path(__file__).parents[1] / "src/afterword/engine/sampler.py"


def body(text: str, at: int) -> dict[str, Any]:
    """Returns an editor's request with the cursor at a character, as llama.vim makes it."""
    line = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    return {
        "input_prefix": text[:line], "prompt": text[line:at], "input_suffix": text[end:],
        "n_predict": TOKENS, "temperature": 0, "cache_prompt": True, "stream": False,
    }  # fmt: skip


def send(port: int, request: dict[str, Any]) -> http.client.HTTPConnection:
    """Send a request and return its connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/infill", json.dumps(request), {"content-type": "application/json"})
    return connection


def suggestion(port: int, request: dict[str, Any]) -> dict[str, Any]:
    """Returns the whole answer to a request."""
    connection = send(port, request)
    reply = connection.getresponse()
    answer: dict[str, Any] = json.loads(reply.read())
    connection.close()
    if reply.status != http.client.OK:
        raise RuntimeError(f"/infill answers {reply.status}: {answer}")
    return answer


def stops(text: str, start: int, count: int) -> Iterator[int]:
    """Yields the characters at which suggestions are measured."""
    places = list(range(EVERY, len(text), EVERY))
    yield from places[start : start + count]


def type_through(port: int, text: str, start: int, count: int) -> list[float]:
    """Returns the milliseconds to each suggestion. The first one, which fills the cache, is not."""
    times = []
    places = stops(text, start, count + 1)
    suggestion(port, body(text, next(places)))
    for at in places:
        abandoned = send(port, body(text, at - EVERY // 2))
        time.sleep(CUT_OFF_AFTER_S)
        began = time.perf_counter()
        abandoned.close()
        suggestion(port, body(text, at))
        times.append((time.perf_counter() - began) * 1000)
    return times


def report(name: str, times: list[float]) -> tuple[float, float]:
    """Print a server's line. Returns median and 95th percentile in milliseconds."""
    middle = statistics.median(times)
    slow = statistics.quantiles(times, n=20)[-1]
    print(f"{name:<14} {len(times):>5} suggestions  median {middle:7.1f} ms  95 % {slow:7.1f} ms",
          flush=True)  # fmt: skip
    return middle, slow


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--peers", type=Path, help="folder of llama-server")
    parser.add_argument("--file", type=Path, default=TEXT)
    parser.add_argument("--lines", type=int, default=300)
    parser.add_argument("--start", type=float, default=0.0)
    parser.add_argument("--stops", type=int, default=1 << 30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ctx", type=int, default=8192)
    parser.add_argument("--kv", choices=("exact", "fast"), default="exact")
    args = parser.parse_args()
    text = "".join(args.file.read_text("utf-8").splitlines(keepends=True)[: args.lines])
    start = int(args.start * len(text) / EVERY)
    port = free_port()
    with running(serve_command(args.model, port, args, 2), port):
        mine = report("afterword", type_through(port, text, start, args.stops))
    if args.peers is None:
        return
    port = free_port()
    command = peers.llama_server(
        args.peers, args.model, port, threads=args.threads, slots=1, ctx=args.ctx
    )
    with running(command, port):
        theirs = report("llama-server", type_through(port, text, start, args.stops))
    ratios = [f"{a / b:.2f}" for a, b in zip(mine, theirs, strict=True)]
    print(f"ratio: median {ratios[0]}, 95 % {ratios[1]}")


if __name__ == "__main__":
    main()
