"""Compares Afterword as a gateway with litellm: CPU time a token, added time to the first token.

A stub upstream speaks vLLM's routes at line rate. The gateway has the first core, the stub and
the clients share the last one.

    python benchmarks/gateway.py [--litellm PATH-OF-ITS-litellm]

Install litellm in its own environment: ``python -m venv V && V/bin/pip install 'litellm[proxy]'``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

import tests_path  # noqa: F401 - where support is
from processes import cores, cpu_s, on_core
from support.processes import free_port, running

STREAMS = 64
PACED_TOKENS_PER_S = 30
STUB = Path(__file__).with_name("gateway_stub.py")
AFTERWORD = Path(sys.executable).parent / "afterword"


class Figures(msgspec.Struct):
    """Results of one run; times to the first token in milliseconds."""

    tokens: int
    tokens_per_s: float
    cpu_us_per_token: float
    first_ms: list[float]

    def first(self, share: float) -> float:
        """Returns a quantile of the times to the first token, in milliseconds."""
        return sorted(self.first_ms)[min(int(len(self.first_ms) * share), len(self.first_ms) - 1)]


class Load(msgspec.Struct):
    """What the clients send; ``pace`` is in tokens a second for each stream, 0 for full speed."""

    requests: int
    tokens: int
    pace: int


def drive(port: int, load: Load, core: int) -> Figures:
    """Run a client process that keeps 64 streams open until all requests are done."""
    program = str(Path(__file__).with_name("gateway_load.py"))
    numbers = (port, load.requests, STREAMS, load.tokens, load.pace)
    command = on_core(core, [sys.executable, program, *map(str, numbers)])
    done = subprocess.run(command, check=True, capture_output=True)
    return msgspec.json.decode(done.stdout, type=Figures)


def measured(pid: int, port: int, load: Load, core: int) -> Figures:
    """Run a load, and add the server's CPU time to its figures."""
    before = cpu_s(pid)
    figures = drive(port, load, core)
    figures.cpu_us_per_token = (cpu_s(pid) - before) / figures.tokens * 1e6
    return figures


@contextmanager
def stub(core: int) -> Iterator[int]:
    """Start the upstream; yields its port."""
    port = free_port()
    command = on_core(core, [sys.executable, str(STUB), str(port)])
    with running(command, port):
        yield port


@contextmanager
def afterword(upstream: int, dialect: str, core: int) -> Iterator[tuple[int, int]]:
    """Start Afterword in front of the stub; yields its process id and port."""
    port = free_port()
    command = [
        str(AFTERWORD), "serve", "--port", str(port), "--model",
        f"stub={dialect}+http://127.0.0.1:{upstream}/v1", "--log-level", "warning",
    ]  # fmt: skip
    with running(on_core(core, command), port) as pid:
        yield pid, port


@contextmanager
def litellm(program: str, upstream: int, core: int) -> Iterator[tuple[int, int]]:
    """Start the litellm proxy in front of the stub; yields its process id and port."""
    port = free_port()
    model = {
        "model_name": "stub",
        "litellm_params": {"model": "text-completion-openai/stub", "api_key": "x",
                           "api_base": f"http://127.0.0.1:{upstream}/v1"},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text(json.dumps({"model_list": [model]}))
        # Quiet, offline and without a key, as Afterword runs here.
        os.environ |= {
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        }
        command = [program, "--port", str(port), "--config", str(config), "--num_workers", "1"]
        with running(on_core(core, command), port, ready="/health/liveliness") as pid:
            yield pid, port


def show(name: str, figures: Figures, bare: Figures | None) -> None:
    """Print one line of figures, with added times relative to ``bare``."""
    line = f"{name:<34} {figures.tokens_per_s:>9,.0f} tok/s"
    if figures.cpu_us_per_token:
        line += f"  {figures.cpu_us_per_token:>8.1f} us/token"
    line += f"  first p50 {figures.first(0.5):>8.2f} ms  p99 {figures.first(0.99):>8.2f} ms"
    if bare is not None:
        added = [figures.first(q) - bare.first(q) for q in (0.5, 0.99)]
        line += f"  added {added[0]:>7.2f} / {added[1]:>7.2f} ms"
    print(line, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--litellm", help="path of the litellm program in its own environment")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--requests", type=int, default=256)
    given = parser.parse_args()
    gateway, rest = cores()[0], cores()[-1]
    paced = Load(given.requests, given.tokens, PACED_TOKENS_PER_S)
    flat = Load(4 * STREAMS, 2000, 0)
    with stub(rest) as upstream:
        print(f"{STREAMS} streams of {given.tokens} tokens at {PACED_TOKENS_PER_S} a second each")
        bare = drive(upstream, paced, rest)
        show("the stub itself", bare, None)
        for name, opened in gateways(given.litellm, upstream, gateway):
            with opened as (pid, port):
                show(name, measured(pid, port, paced, rest), bare)
        print("at full speed, one core for the gateway")
        show("the stub itself", drive(upstream, flat, rest), None)
        for name, opened in gateways(given.litellm, upstream, gateway):
            load = Load(2 * STREAMS, given.tokens, 0) if name == "litellm" else flat
            with opened as (pid, port):
                show(name, measured(pid, port, load, rest), None)


def gateways(
    program: str | None, upstream: int, core: int
) -> Iterator[tuple[str, AbstractContextManager[tuple[int, int]]]]:
    """Yields the gateways to measure, by name."""
    yield "afterword, vllm+", afterword(upstream, "vllm", core)
    yield "afterword, openai+", afterword(upstream, "openai", core)
    if program:
        yield "litellm", litellm(program, upstream, core)


if __name__ == "__main__":
    main()
