"""Compiles for a GPU, and measures ratios to llama.cpp's programs on the same card and build.

``make install``, then ``.venv/bin/python benchmarks/gpu.py --gpu cuda --data FOLDER``: under ten
minutes on 16 cores. Before that, ``--gpu vulkan --small`` shows on lavapipe, after ``make test``,
that all of it runs, with a tiny model: of the embedded one, it computed no row in 85 s.
The folder of data has ``hellaswag.jsonl``. ``--work`` keeps what was compiled.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

import tests_path  # noqa: F401 - where support and the scripts are
import workloads
from afterword.core.machine import usable_cores
from gpu_test import prepared
from native_build import (
    NATIVE,
    SDKS,
    BuildError,
    Way,
    build_environment,
    check_programs,
    compile_all,
    compile_variant,
    compiled,
    fetch,
    unpack,
    variants,
)
from processes import resident_bytes
from run import line, medians_in_turn, rate
from servers import Servers
from support.embedded import embedded_file
from support.load import stream_all
from support.processes import free_port, running

Measure: TypeAlias = Callable[[int, int], float]
"""By a port and a seed."""
PROGRAMS = ("llama-server", "llama-perplexity")
ROWS = ("stream", "streams", "prompt", "scoring", "start")
ALL_LAYERS = "999"
START_S = 600
"""A device in software compiles what it computes during the start."""


class Sizes(NamedTuple):
    """How much is measured. ``few`` items are scored first, so that a start does not count.

    ``stream_room`` and ``item_room`` are contexts of one of ``streams`` and of an item, in tokens.
    """

    streams: int
    tokens: int
    words: int
    items: int
    few: int
    stream_room: int
    item_room: int
    rounds: int


LARGE = Sizes(
    streams=32, tokens=64, words=1900, items=200, few=20, stream_room=256, item_room=512, rounds=3
)  # fmt: skip
# A token of the small model is a letter.
SMALL = Sizes(
    streams=2, tokens=3, words=30, items=2, few=1, stream_room=1024, item_room=2048, rounds=1
)  # fmt: skip


def compile_both(way: Way, work: Path, source: Path | None) -> None:
    """Compile llama.cpp's programs into ``work/peers``, and then this project into ``work/ours``.

    In one folder, so that what is compiled for the GPU is compiled once, and the same. Raises
    ``BuildError``.
    """
    if (work / "ours" / "lib" / "libafterword-llama.so").exists():
        return
    check_programs(way)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    tree = unpack(source or fetch(work), work / "source")
    vendor = tree / "vendor" / "llama.cpp"
    for patch in sorted((NATIVE / "gpu").glob("*.patch")):
        command = ["patch", "-s", "-p1", "--fuzz=0", "-i", str(patch)]
        subprocess.run(command, cwd=vendor, check=True)
    (vendor / "afterword-gpu-patches").touch()
    (made,) = variants(way)
    environment = build_environment(way)
    flags = [flag for flag in made.flags if "PROJECT_INCLUDE" not in flag]
    flags += [f"-DLLAMA_BUILD_{part}=ON" for part in ("TOOLS", "SERVER")]
    flags += ["-DLLAMA_USE_PREBUILT_UI=OFF", "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON"]
    if nvcc := shutil.which("nvcc", path=environment["PATH"]):
        flags.append(f"-DCMAKE_BUILD_RPATH={Path(nvcc).resolve().parents[1] / 'lib64'}")
    peer = made._replace(flags=flags, targets=PROGRAMS)
    binaries = compile_variant(tree, peer, environment)
    shutil.copytree(binaries, work / "peers", symlinks=True)
    compile_all(tree, work / "ours", way)
    shutil.copytree(compiled("native"), work / "ours", dirs_exist_ok=True)


class GpuBench(Servers):
    """The rows of the table. All layers of both servers are on the card."""

    def __init__(self, args: argparse.Namespace, sizes: Sizes) -> None:
        super().__init__(args)
        self.sizes = sizes
        self.log = args.work / "servers.log"

    def _ours_there(self, port: int, *, slots: int, ctx: int) -> list[str]:
        """Returns the command of this server. Its default on a GPU is fewer sequences."""
        command = self.our_command(port, slots=slots, ctx=ctx)
        return [*command, "--slots", str(slots), "--gpu-layers", ALL_LAYERS]

    def _peer_there(self, port: int, *, slots: int, ctx: int) -> list[str]:
        return self.llama_command(port, slots=slots, ctx=ctx, flags=("-ngl", ALL_LAYERS))

    @contextmanager
    def both(self, slots: int, ctx: int) -> Iterator[Sequence[int]]:
        """Run both servers; yields their ports."""
        with ExitStack() as servers:
            ports = []
            for command in (self._ours_there, self._peer_there):
                port = free_port()
                made = command(port, slots=slots, ctx=ctx)
                servers.enter_context(running(made, port, wait_s=START_S, log=self.log))
                ports.append(port)
            yield ports

    def start(self) -> None:
        """From the start of a server to its first token, the second time, and its memory."""
        took, memory = [], []
        for command in (self._ours_there, self._peer_there):
            port = free_port()
            made = command(port, slots=4, ctx=1024)
            with running(made, port, wait_s=START_S, log=self.log) as pid:
                workloads.first_token_s(port, "The harbour was quiet")
                memory.append(resident_bytes(pid) / 1e6)
            took.append(workloads.start_s(made, port))
        for name, (ours, peer) in (("start, s", took), ("memory of the process, MB", memory)):
            line(f"{name} | llama-server", f"{ours:.2f}", f"{peer:.2f}", peer / ours, "")

    def stream(self) -> None:
        """One sampled stream, without the time to its first token."""
        with self.both(slots=4, ctx=1024) as ports:
            self._row("one stream, ms a token | llama-server", ports, self._ms_a_token)

    def _ms_a_token(self, port: int, seed: int) -> float:
        tokens = 2 * self.sizes.tokens
        return 1e3 / rate(
            stream_all(port, [workloads.sampled(seed, prompt_words=60, tokens=tokens)])
        )

    def streams(self) -> None:
        """Many sampled streams until the last has ended."""
        streams = self.sizes.streams
        with self.both(slots=streams, ctx=self.sizes.stream_room) as ports:
            self._row(f"{streams} streams, s | llama-server", ports, self._streams_s)

    def _streams_s(self, port: int, seed: int) -> float:
        return workloads.many_streams_s(
            port, self.sizes.streams, prompt_words=60, tokens=self.sizes.tokens,
            seed=1000 * (seed + 1),
        )  # fmt: skip

    def prompt(self) -> None:
        """Time to the first token behind a new prompt."""
        words = self.sizes.words
        with self.both(slots=2, ctx=4096) as ports:
            self._row(f"prefill of {words} words, s | llama-server", ports, self._prefill_s)

    def _prefill_s(self, port: int, seed: int) -> float:
        return workloads.first_token_s(port, workloads.text(self.sizes.words, 20 + seed))

    def scoring(self) -> None:
        """HellaSwag scored by this server, and by llama-perplexity, because llama-server cannot."""
        items = workloads.read_items(self.args.data / "hellaswag.jsonl", self.sizes.items)
        port = free_port()
        took = []
        command = self._ours_there(port, slots=16, ctx=self.sizes.item_room)
        with running(command, port, wait_s=START_S, log=self.log):
            grouped = workloads.scoring_prompts(port, items)
            for some in (grouped[: self.sizes.few], grouped[self.sizes.few :]):
                prompts = [prompt for item in some for prompt in item]
                took.append(workloads.score(port, prompts).took_s)
        file = self.args.work / "hellaswag.txt"
        rows = [
            [item["context"].replace("\n", " "), str(item["label"]),
             *(choice.strip() for choice in item["choices"])] for item in items
        ]  # fmt: skip
        file.write_text("\n".join(line for row in rows for line in row) + "\n", "utf-8")
        few_s, all_s = (self._perplexity_s(file, n) for n in (self.sizes.few, len(items)))
        if all_s <= few_s:
            raise RuntimeError("too few items to tell their time from that of a start")
        counted = len(items) - self.sizes.few
        ours, peer = counted / took[-1], counted / (all_s - few_s)
        line("HellaSwag, items/s | llama-perplexity", f"{ours:.1f}", f"{peer:.1f}", ours / peer, "")

    def _perplexity_s(self, file: Path, items: int) -> float:
        command = [
            str(self.args.peers / "llama-perplexity"), "-m", str(self.model), "-f", str(file),
            "--hellaswag", "--hellaswag-tasks", str(items), "-ngl", ALL_LAYERS,
            "-t", str(self.args.threads),
        ]  # fmt: skip
        started = time.perf_counter()
        with self.log.open("ab") as said:
            subprocess.run(command, check=True, stdout=said, stderr=said)
        return time.perf_counter() - started

    def _row(self, name: str, ports: Sequence[int], measure: Measure) -> None:
        """Print the medians of rounds in turn. One request before them is not counted."""
        for port in ports:
            measure(port, self.sizes.rounds)
        ours, peer = medians_in_turn(measure, ports, self.sizes.rounds)
        line(name, f"{ours:.2f}", f"{peer:.2f}", peer / ours, "")


def small_file(folder: Path) -> Path:
    """Write a model that a device in software computes in seconds; the tests' packages do that."""
    from support.tiny_gguf import make_gguf  # noqa: PLC0415

    return make_gguf(folder / "small.gguf", context=8192)


def main() -> None:
    """Compile unless that was done, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", choices=list(SDKS), default="cuda")
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the embedded one")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/afterword-gpu"))  # noqa: S108
    parser.add_argument("--source", type=Path, help="the source package, without an index")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--kv", choices=("exact", "fast"), default="fast")
    parser.add_argument("--small", action="store_true", help="for a device in software")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS)
    args = parser.parse_args()
    started = time.perf_counter()
    try:
        compile_both(args.gpu, args.work, args.source)
    except BuildError as error:
        sys.exit(f"gpu: {error}")
    compiled_s = time.perf_counter() - started
    args.peers = args.work / "peers"
    args.model = args.model or (small_file(args.work) if args.small else embedded_file())
    made, about = prepared(args.work / "ours" / "lib")
    if not about:
        sys.exit("gpu: no GPU found")
    os.environ.update(made)
    bench = GpuBench(args, SMALL if args.small else LARGE)
    bench.log.unlink(missing_ok=True)
    print(f"{about}, {args.model.name}, --kv {args.kv}; compiled in {compiled_s:.0f} s")
    print(f"{'':<44} {'afterword':>14} {'peer':>14} {'ratio':>7}", flush=True)
    failed = False
    for row in args.only:
        try:
            getattr(bench, row)()
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            # Nobody may be there to start the others.
            failed = True
            print(f"{row}: {error} (see {bench.log})", flush=True)
    print(f"{time.perf_counter() - started:.0f} s in all")
    sys.exit(failed)


if __name__ == "__main__":
    main()
