"""What sharing, sampling and fairness come to, as ratios to peers in one run.

``python benchmarks/sharing.py --peers FOLDER --data FOLDER [--only ROW ...] [--kv exact]``.
FOLDER of peers has llama-server, llama-bench and llama-batched-bench, and may have an environment
``pyserver`` with llama-cpp-python's own server; FOLDER of data has the multiple-choice files.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import peers
import workloads
from embedded import embedded_file
from load import stream_all
from run import body, line, rate, serve_command

STREAMS = 32
CHOICES = 16
PROMPT_WORDS = 60
TOKENS = 64


def one_stream_s(port: int, seed: int) -> float:
    """Seconds a token of one greedy stream."""
    return 1 / rate(stream_all(port, [body("bench", seed)]))


def sampled_streams_s(port: int, seed: int) -> float:
    """Seconds until the last of the sampled streams has ended."""
    return workloads.many_streams_s(
        port, STREAMS, prompt_words=PROMPT_WORDS, tokens=TOKENS, seed=1000 * (seed + 1)
    )


def prefill_s(port: int, seed: int) -> float:
    """Seconds to the first token after a prompt that nobody sent before."""
    return workloads.first_token_s(port, workloads.text(500, 20 + seed))


def long_prompt_s(port: int, seed: int) -> float:
    """The same of 2,000 tokens."""
    return workloads.first_token_s(port, workloads.text(1900, 20 + seed))


def rewriting_s(port: int, _seed: int) -> float:
    """Seconds a token of a text that is nearly what the prompt has."""
    return workloads.rewriting_s_per_token(port)


class Bench:
    """One machine, one model, its peers."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model: Path = args.model or embedded_file()

    @contextmanager
    def ours(self, *flags: str, slots: int, ctx: int, kv: str | None = None) -> Iterator[int]:
        """Afterword on a free port."""
        port = peers.free_port()
        given = argparse.Namespace(**{**vars(self.args), "ctx": ctx, "kv": kv or self.args.kv})
        command = [*serve_command(self.model, port, given, slots), *flags]
        with peers.running(command, port):
            yield port

    @contextmanager
    def llama_server(self, *flags: str, slots: int, ctx: int) -> Iterator[int]:
        """The peer on a free port."""
        port = peers.free_port()
        command = [
            str(self.args.peers / "llama-server"), "-m", str(self.model), "-c", str(slots * ctx),
            "-np", str(slots), "-t", str(self.args.threads), "--port", str(port),
            "--host", "127.0.0.1", *flags,
        ]  # fmt: skip
        with peers.running(command, port):
            yield port

    @contextmanager
    def python_server(self, *, ctx: int) -> Iterator[int]:
        """llama-cpp-python's own server on a free port; scoring needs all its logits."""
        port = peers.free_port()
        command = [
            str(self.args.peers / "pyserver" / "bin" / "python"), "-m", "llama_cpp.server",
            "--model", str(self.model), "--n_ctx", str(ctx), "--logits_all", "true",
            "--n_threads", str(self.args.threads), "--port", str(port),
        ]  # fmt: skip
        with peers.running(command, port, ready="/v1/models"):
            yield port

    def rounds(self, measure: Callable[[int], float]) -> float:
        """The median of several rounds, each with a seed of its own."""
        return statistics.median(measure(i) for i in range(self.args.rounds))

    def prefill(self) -> float:
        """Tokens a second of llama-bench on a 512-token prompt, flash attention on or off."""
        return peers.llama_bench(
            self.args.peers, self.model, threads=self.args.threads, tokens=0, prompt=512
        )

    def one(self) -> None:
        """One greedy stream."""
        with self.ours(slots=4, ctx=1024) as port:
            ours = self.rounds(partial(one_stream_s, port))
        with self.llama_server(slots=4, ctx=1024) as port:
            peer = self.rounds(partial(one_stream_s, port))
        line("one greedy stream, ms a token | llama-server", f"{1e3 * ours:.1f}",
             f"{1e3 * peer:.1f}", peer / ours, ">= 1.0")  # fmt: skip

    def prompt(self) -> None:
        """Time to first token of a prompt of 2,000 tokens that nobody sent before."""
        found = []
        for server in (self.ours, self.llama_server):
            with server(slots=2, ctx=4096) as port:
                found.append(self.rounds(partial(long_prompt_s, port)))
        line("prefill of 2,000 tokens, s | llama-server", f"{found[0]:.2f}", f"{found[1]:.2f}",
             found[1] / found[0], "")  # fmt: skip

    def rewrite(self) -> None:
        """One greedy stream that rewrites a text; the peer without and with drafts of its own."""
        with self.ours(slots=4, ctx=1024) as port:
            ours = self.rounds(partial(rewriting_s, port))
        for name, flags in (("", ()), (", ngram-simple", ("--spec-type", "ngram-simple"))):
            with self.llama_server(*flags, slots=4, ctx=1024) as port:
                peer = self.rounds(partial(rewriting_s, port))
            line(f"rewriting a text, ms a token | llama-server{name}", f"{1e3 * ours:.1f}",
                 f"{1e3 * peer:.1f}", peer / ours, ">= 2")  # fmt: skip

    def streams(self) -> None:
        """32 sampled streams of 64 tokens after 64, until the last has ended."""
        with self.ours(slots=STREAMS, ctx=256) as port:
            ours = self.rounds(partial(sampled_streams_s, port))
        with self.llama_server(slots=STREAMS, ctx=256) as port:
            peer = self.rounds(partial(sampled_streams_s, port))
        line(f"{STREAMS} sampled streams, s | llama-server", f"{ours:.1f}", f"{peer:.1f}",
             peer / ours, ">= 1.5")  # fmt: skip
        limit = peers.llama_batched_bench_s(
            self.args.peers, self.model, threads=self.args.threads, streams=STREAMS,
            prompt=64, tokens=TOKENS,
        )  # fmt: skip
        line("the same, s | llama-batched-bench (the limit)", f"{ours:.1f}", f"{limit:.1f}",
             limit / ours, ">= 0.9")  # fmt: skip
        with self.ours("--target-gap-ms", "3000", slots=STREAMS, ctx=256) as port:
            ours = self.rounds(partial(sampled_streams_s, port))
        line("with --target-gap-ms 3000, s | llama-server", f"{ours:.1f}", f"{peer:.1f}",
             peer / ours, ">= 1.5")  # fmt: skip
        line("the same, s | llama-batched-bench (the limit)", f"{ours:.1f}", f"{limit:.1f}",
             limit / ours, ">= 0.9")  # fmt: skip

    def choices(self) -> None:
        """16 choices of one 512-token prompt; the peer's better way of two."""
        with self.ours(slots=CHOICES, ctx=1024) as port:
            ours = self.rounds(partial(workloads.choices_s, port, CHOICES, apart=False))
        with self.llama_server(slots=CHOICES, ctx=1024) as port:
            for apart, name in ((False, "n = 16"), (True, "16 requests")):
                peer = self.rounds(partial(workloads.choices_s, port, CHOICES, apart=apart))
                line(f"{CHOICES} choices, s | llama-server, {name}", f"{ours:.1f}",
                     f"{peer:.1f}", peer / ours, ">= 2")  # fmt: skip

    def scoring(self, name: str, ctx: int, few: int, goals: tuple[str, str]) -> None:
        """Echo and log-probabilities of a multiple-choice file."""
        with self.ours(slots=self.args.slots, ctx=ctx) as port:
            items = workloads.scoring_prompts(port, self.args.data / name, self.args.items)
            prompts = [prompt for item in items for prompt in item]
            took = workloads.score_s(port, prompts)
        total, unique = sum(map(len, prompts)), workloads.unique_tokens(prompts)
        limit = self.prefill()
        line(f"{name}, unique tokens/s | prefill (the limit)", f"{unique / took:.0f}",
             f"{limit:.0f}", unique / took / limit, goals[0])  # fmt: skip
        few = min(few, self.args.few)
        if not few or not (self.args.peers / "pyserver").exists():
            return
        with self.python_server(ctx=ctx) as port:
            peer = workloads.score_texts_s(port, self.args.data / name, few)
        theirs = sum(len(prompt) for item in items[:few] for prompt in item) / peer
        line(f"the same, tokens/s | llama_cpp.server, {few} items", f"{total / took:.0f}",
             f"{theirs:.0f}", total / took / theirs, goals[1])  # fmt: skip

    def hellaswag(self) -> None:
        """Short contexts, four endings each."""
        self.scoring("hellaswag.jsonl", 512, 12, (">= 0.85", ">= 20"))

    def mmlu(self) -> None:
        """The same few-shot header before every question, answers of one token."""
        self.scoring("mmlu_5shot.jsonl", 2048, 2, (">= 0.8", ">= 100"))

    def prefix(self) -> None:
        """Time to first token behind a 3,000-token prefix, cold and cached."""
        with self.ours(slots=4, ctx=4096) as port:
            head = workloads.text(2900, 3)
            cold = workloads.first_token_s(port, head + " first question")
            warm = self.rounds(lambda i: workloads.first_token_s(port, f"{head} question {i}"))
        line("first token behind 3,000 cached tokens, s | cold", f"{warm:.3f}", f"{cold:.2f}",
             cold / warm, ">= 10")  # fmt: skip

    def fair(self) -> None:
        """First tokens of short requests beside four prompts of 4,000 tokens, 95th percentile."""
        found = []
        for server in (self.ours, self.llama_server):
            with server(slots=8, ctx=5120) as port:
                found.append(
                    workloads.p95(workloads.short_beside_long_s(port, long_words=3900, shorts=20))
                )
        line("short beside four long prompts, s | llama-server", f"{found[0]:.2f}",
             f"{found[1]:.2f}", found[1] / found[0], ">= 3")  # fmt: skip

    def promise(self) -> None:
        """What the promise of the seed costs: exact against fast."""
        took: dict[str, dict[str, float]] = {}
        for kv in ("exact", "fast"):
            with self.ours(slots=STREAMS, ctx=1024, kv=kv) as port:
                took[kv] = {
                    "one stream": self.rounds(partial(one_stream_s, port)),
                    f"{STREAMS} streams": self.rounds(partial(sampled_streams_s, port)),
                    "prefill of 512": self.rounds(partial(prefill_s, port)),
                }
        for name in took["exact"]:
            line(f"promise kept | --kv fast: {name}", "", "",
                 took["fast"][name] / took["exact"][name], ">= 0.85")  # fmt: skip


ROWS = (
    "one",
    "prompt",
    "rewrite",
    "streams",
    "choices",
    "hellaswag",
    "mmlu",
    "prefix",
    "fair",
    "promise",
)


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF file; without it the embedded model")
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kv", choices=("exact", "fast"), default="fast")
    parser.add_argument("--slots", type=int, default=16, help="slots for scoring")
    parser.add_argument("--items", type=int, default=1000, help="items of a file to score")
    parser.add_argument("--few", type=int, default=12, help="items for llama-cpp-python's server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS)
    args = parser.parse_args()
    bench = Bench(args)
    print(f"{'':<50} {'afterword':>10} {'peer':>10} {'ratio':>7}  goal   (--kv {args.kv})")
    for row in args.only:
        getattr(bench, row)()


if __name__ == "__main__":
    main()
