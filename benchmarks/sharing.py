"""Measures sharing, sampling and fairness as ratios to peers in one run.

``python benchmarks/sharing.py --peers FOLDER --data FOLDER [--only ROW ...] [--kv fast]``.
The folder of peers has llama-server, llama-bench and llama-batched-bench. It may also have the
environments ``pyserver`` with llama-cpp-python's own server and ``lmeval`` with lm_eval's
transformers backend; docs/performance.md tells how to make them. The folder of data has the
multiple-choice files.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import peers
import tests_path  # noqa: F401 - where support is
import workloads
from accuracy import report
from afterword.core.machine import usable_cores
from run import body, line, medians_in_turn, rate
from servers import Servers
from support.load import stream_all
from support.processes import free_port

STREAMS = 32
MANY = 256
CHOICES = 16
PROMPT_WORDS = 60
TOKENS = 64
STARTS = 5
ROUNDS_IN_TURN = 9
FAIR_LIMIT_S = 110


class Few(NamedTuple):
    """Numbers of items for slow peers.

    ``served`` is for llama-cpp-python's server, ``tried`` for each setting of lm_eval.
    """

    served: int
    tried: int


def one_stream_s(port: int, seed: int) -> float:
    """Returns the seconds a token of one greedy stream."""
    return 1 / rate(stream_all(port, [body("bench", seed)]))


def free_stream_s(port: int, seed: int) -> float:
    """Returns the seconds a token of one sampled stream, whose text no draft foretells."""
    return 1 / rate(stream_all(
        port, [workloads.sampled(seed, prompt_words=PROMPT_WORDS, tokens=2 * TOKENS)]
    ))  # fmt: skip


def sampled_streams_s(port: int, seed: int) -> float:
    """Returns the seconds until the last of the sampled streams has ended."""
    return workloads.many_streams_s(
        port, STREAMS, prompt_words=PROMPT_WORDS, tokens=TOKENS, seed=1000 * (seed + 1)
    )


def choices_s(port: int, seed: int) -> float:
    """Returns the seconds for the choices of one prompt, in one request."""
    return workloads.choices_s(port, CHOICES, seed, apart=False)


def prefill_s(port: int, seed: int) -> float:
    """Returns the seconds to the first token after a new prompt."""
    return workloads.first_token_s(port, workloads.text(500, 20 + seed))


def prefill_rate(port: int, seed: int) -> float:
    """Returns the tokens a second of ``prefill_s``."""
    return len(workloads.tokenize(port, workloads.text(500, 20 + seed))) / prefill_s(port, seed)


def long_prompt_s(port: int, seed: int) -> float:
    """Returns the seconds to the first token after 2,000 tokens."""
    return workloads.first_token_s(port, workloads.text(1900, 20 + seed))


class Bench(Servers):
    """The rows of the table, on one machine and one model."""

    def rounds(self, measure: Callable[[int], float]) -> float:
        """Returns the median of several rounds, each with its own seed."""
        return statistics.median(measure(i) for i in range(self.args.rounds))

    def prefill(self) -> float:
        """Returns tokens a second of llama-bench on a 512-token prompt, the better of two ways."""
        return peers.llama_bench(
            self.args.peers, self.model, threads=self.args.threads, tokens=0, prompt=512
        )

    def one(self) -> None:
        """One greedy stream."""
        with self.ours(slots=4, ctx=1024) as port, self.llama_server(slots=4, ctx=1024) as other:
            ours, peer = medians_in_turn(one_stream_s, (port, other), self.args.rounds)
        line("one greedy stream, ms a token | llama-server", f"{1e3 * ours:.1f}",
             f"{1e3 * peer:.1f}", peer / ours, ">= 1.0")  # fmt: skip

    def free(self) -> None:
        """One sampled stream without drafts."""
        ours = self.ours("--no-prompt-lookup", slots=4, ctx=1024)
        with ours as port, self.llama_server(slots=4, ctx=1024) as other:
            mine, peer = medians_in_turn(free_stream_s, (port, other), ROUNDS_IN_TURN)
        line("one sampled stream, ms a token | llama-server", f"{1e3 * mine:.1f}",
             f"{1e3 * peer:.1f}", peer / mine, ">= 1.25")  # fmt: skip

    def prompt(self) -> None:
        """Time to the first token after a new prompt of 2,000 tokens."""
        with self.ours(slots=2, ctx=4096) as port, self.llama_server(slots=2, ctx=4096) as other:
            ours, peer = medians_in_turn(long_prompt_s, (port, other), self.args.rounds)
        line("prefill of 2,000 tokens, s | llama-server", f"{ours:.2f}", f"{peer:.2f}",
             peer / ours, "")  # fmt: skip

    def start(self) -> None:
        """Time from starting the server to the first token, with files in the page cache."""
        slots, ctx = 8, 2048
        with self.ours(slots=slots, ctx=ctx), self.llama_server(slots=slots, ctx=ctx):
            pass
        llama = partial(self.llama_command, slots=slots, ctx=ctx)
        commands: dict[str, Callable[[int], list[str]]] = {
            "afterword": partial(self.our_command, slots=slots, ctx=ctx),
            "llama-server": llama,
            "llama-server, --no-warmup": partial(llama, flags=("--no-warmup",)),
        }
        took: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(STARTS):
            for name, command in commands.items():
                port = free_port()
                took[name].append(workloads.start_s(command(port), port))
        ours, *others = (statistics.median(each) for each in took.values())
        for name, peer in zip(list(commands)[1:], others, strict=True):
            line(f"start to first token, s | {name}", f"{ours:.2f}", f"{peer:.2f}",
                 peer / ours, ">= 1.0")  # fmt: skip

    def rewrite(self) -> None:
        """One greedy stream that rewrites a text; the peer runs without and with its own drafts."""
        measure = workloads.rewriting_s_per_token
        with self.ours(slots=4, ctx=1024) as port:
            for name, flags in (("", ()), (", ngram-simple", ("--spec-type", "ngram-simple"))):
                with self.llama_server(*flags, slots=4, ctx=1024) as other:
                    # Alternate, because a machine's speed changes over time.
                    pairs = [(measure(port), measure(other)) for _ in range(ROUNDS_IN_TURN)]
                ours, peer = map(statistics.median, zip(*pairs, strict=True))
                ratio = statistics.median(theirs / mine for mine, theirs in pairs)
                line(f"rewriting a text, ms a token | llama-server{name}", f"{1e3 * ours:.1f}",
                     f"{1e3 * peer:.1f}", ratio, ">= 2")  # fmt: skip

    def streams(self) -> None:
        """32 sampled streams of 64 tokens after prompts of 64, until the last has ended."""
        mine = self.ours(slots=STREAMS, ctx=256)
        with mine as port, self.llama_server(slots=STREAMS, ctx=256) as other:
            ours, peer = medians_in_turn(sampled_streams_s, (port, other), self.args.rounds)
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

    def many(self) -> None:
        """256 sampled streams against 32, and how much later than most of them the last ends."""
        with self.ours(slots=MANY, ctx=256) as port:
            runs = {
                streams: [stream_all(port, workloads.sampled_streams(streams, TOKENS))
                          for _ in range(self.args.rounds)]
                for streams in (MANY, STREAMS)
            }  # fmt: skip
        many, few = (statistics.median(map(rate, rounds)) for rounds in runs.values())
        line(f"{MANY} streams, tokens/s | {STREAMS} streams", f"{many:.0f}", f"{few:.0f}",
             many / few, ">= 1.0")  # fmt: skip
        took = [timed.last - timed.started for timed in runs[MANY][-1]]
        median = statistics.median(took)
        line("the same, s of the last | of the median", f"{max(took):.1f}", f"{median:.1f}",
             median / max(took), "")  # fmt: skip

    def choices(self) -> None:
        """16 choices of one 512-token prompt; the peer tries ``n`` and separate requests."""
        mine = self.ours(slots=CHOICES, ctx=1024)
        with mine as port, self.llama_server(slots=CHOICES, ctx=1024) as other:
            ours, by_n = medians_in_turn(choices_s, (port, other), self.args.rounds)
            # Prompts of their own: the peer has those before in its cache.
            apart = self.rounds(
                lambda i: workloads.choices_s(other, CHOICES, self.args.rounds + i, apart=True)
            )
        for peer, name in ((by_n, "n = 16"), (apart, "16 requests")):
            line(f"{CHOICES} choices, s | llama-server, {name}", f"{ours:.1f}",
                 f"{peer:.1f}", peer / ours, ">= 2")  # fmt: skip

    def scoring(self, name: str, ctx: int, few: Few, goals: tuple[str, str, str]) -> None:
        """Echo and log-probabilities of a multiple-choice file."""
        items = workloads.read_items(self.args.data / name, self.args.items)
        with self.ours(slots=self.args.slots, ctx=ctx) as port:
            grouped = workloads.scoring_prompts(port, items)
            begins = [len(workloads.tokenize(port, item["context"])) for item in items]
            prompts = [prompt for item in grouped for prompt in item]
            scored = workloads.score(port, prompts)
            limit = self.rounds(partial(prefill_rate, port))
        took = scored.took_s
        total, unique = sum(map(len, prompts)), workloads.unique_tokens(prompts)
        line(f"{name}, unique tokens/s | own prefill (the limit)", f"{unique / took:.0f}",
             f"{limit:.0f}", unique / took / limit, goals[0])  # fmt: skip
        peer = self.prefill()
        line("the same | prefill of llama-bench", f"{unique / took:.0f}", f"{peer:.0f}",
             unique / took / peer, "")  # fmt: skip
        served = min(few.served, self.args.few)
        if served and (self.args.peers / "pyserver").exists():
            with self.python_server(ctx=ctx) as port:
                peer = workloads.score_texts_s(port, items[:served])
            theirs = sum(len(prompt) for item in grouped[:served] for prompt in item) / peer
            line(f"the same, tokens/s | llama_cpp.server, {served} items", f"{total / took:.0f}",
                 f"{theirs:.0f}", total / took / theirs, goals[1])  # fmt: skip
        if (self.args.peers / "lmeval").exists():
            begin = [b for b, item in zip(begins, items, strict=True) for _ in item["choices"]]
            sums = [
                sum(v for v in values[b:] if v is not None)
                for b, values in zip(begin, scored.values, strict=True)
            ]
            self.harness(self.args.data / name, items, (took, sums), few.tried, goals[2])

    def harness(
        self,
        file: Path,
        items: Sequence[dict[str, Any]],
        ours: tuple[float, list[float]],
        few: int,
        goal: str,
    ) -> None:
        """Score the same items with lm_eval's transformers backend, and compare the results."""
        took, sums = ours
        found = peers.lm_eval(
            self.args.peers, self.model, file, threads=self.args.threads, items=len(items), few=few
        )
        line(f"the same, items/s | lm_eval, {found['dtype']}, {found['batch']} a batch",
             f"{len(items) / took:.1f}", f"{len(items) / found['took_s']:.1f}",
             found["took_s"] / took, goal)  # fmt: skip
        theirs = found["float32_sums"]
        apart = [abs(a - b) for a, b in zip(sums, theirs, strict=False)]
        print(f"  sums of log-probabilities, mean {statistics.mean(theirs):.1f}; difference from "
              f"lm_eval's in float32: mean {statistics.mean(apart):.3f}, "
              f"largest {max(apart):.3f}, of {len(apart)}")  # fmt: skip
        report("afterword", items[:few], sums[: len(theirs)], theirs)

    def hellaswag(self) -> None:
        """HellaSwag: short contexts, four endings each."""
        self.scoring("hellaswag.jsonl", 512, Few(12, 20), (">= 0.85", ">= 20", ">= 2"))

    def mmlu(self) -> None:
        """MMLU: the same few-shot header before each question, answers of one token."""
        self.scoring("mmlu_5shot.jsonl", 2048, Few(2, 10), (">= 0.8", ">= 100", ">= 6"))

    def kernels(self) -> None:
        """HellaSwag on this project's kernels and on an unchanged llama.cpp, alternating."""
        items = workloads.read_items(self.args.data / "hellaswag.jsonl", self.args.items)
        servers: dict[str, Callable[..., AbstractContextManager[int]]] = {
            "ours": self.ours,
            "plain": self.plain,
        }
        took: dict[str, list[float]] = {name: [] for name in servers}
        for _, (name, server) in product(range(self.args.rounds), servers.items()):
            with server(slots=self.args.slots, ctx=512) as port:
                grouped = workloads.scoring_prompts(port, items)
                prompts = [prompt for item in grouped for prompt in item]
                took[name].append(workloads.score(port, prompts).took_s)
        unique = workloads.unique_tokens(prompts)
        ours, plain = (unique / statistics.median(each) for each in took.values())
        line("HellaSwag, tokens/s | unchanged llama.cpp", f"{ours:.0f}", f"{plain:.0f}",
             ours / plain, ">= 2")  # fmt: skip

    def prefix(self) -> None:
        """Time to the first token behind a 3,000-token prefix, cold and cached."""
        with self.ours(slots=4, ctx=4096) as port:
            head = workloads.text(2900, 3)
            cold = workloads.first_token_s(port, head + " first question")
            warm = self.rounds(lambda i: workloads.first_token_s(port, f"{head} question {i}"))
        line("first token behind 3,000 cached tokens, s | cold", f"{warm:.3f}", f"{cold:.2f}",
             cold / warm, ">= 10")  # fmt: skip

    def fair(self) -> None:
        """95th percentile of times to the first token of short requests during four long prompts.

        Each long prompt has 4,000 tokens.
        """
        found = []
        for server in (self.ours, self.llama_server):
            with server(slots=8, ctx=5120) as port:
                found.append(
                    workloads.short_beside_long_s(port, long_words=3900, limit_s=FAIR_LIMIT_S)
                )
        ours, peer = map(workloads.p95, found)
        line(f"{len(found[0])} short during four long, s | llama-server, {len(found[1])}",
             f"{ours:.2f}", f"{peer:.2f}", peer / ours, ">= 3")  # fmt: skip

    def invariance(self) -> None:
        """The cost of batch invariance: ``--kv exact`` against ``--kv fast``."""
        measures = {
            "one stream": one_stream_s,
            f"{STREAMS} streams": sampled_streams_s,
            "prefill of 512": prefill_s,
        }
        servers = [self.ours(slots=STREAMS, ctx=1024, kv=kv) for kv in ("exact", "fast")]
        with servers[0] as one, servers[1] as other:
            for name, measure in measures.items():
                exact, fast = medians_in_turn(measure, (one, other), self.args.rounds)
                line(f"--kv exact | --kv fast: {name}, s", f"{exact:.4f}", f"{fast:.4f}",
                     fast / exact, ">= 0.85")  # fmt: skip


ROWS = (
    "one",
    "free",
    "start",
    "prompt",
    "rewrite",
    "streams",
    "many",
    "choices",
    "hellaswag",
    "mmlu",
    "kernels",
    "prefix",
    "fair",
    "invariance",
)


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the embedded model")
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--kv", choices=("exact", "fast"), default="exact")
    parser.add_argument("--slots", type=int, default=16, help="slots for scoring")
    parser.add_argument("--items", type=int, default=1000, help="items of a file to score")
    parser.add_argument("--few", type=int, default=12, help="items for llama-cpp-python's server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS)
    args = parser.parse_args()
    bench = Bench(args)
    print(f"{'':<50} {'afterword':>10} {'peer':>10} {'ratio':>7}  goal   "
          f"(--kv {args.kv})")  # fmt: skip
    for row in args.only:
        getattr(bench, row)()


if __name__ == "__main__":
    main()
