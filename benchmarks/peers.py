"""Runs the programs of peers from a folder, and reads their figures."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def running(
    command: list[str], port: int, *, ready: str = "/health", wait_s: int = 60
) -> Iterator[int]:
    """Start a server, wait until it answers, give its process id, stop it."""
    with started(command) as process:
        _wait_until_ready(process, f"http://127.0.0.1:{port}{ready}", wait_s)
        yield process.pid


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server that has just been started; it is stopped at the end."""
    # Where this is set, each start of a Python program compiles it anew.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet) as process:
        try:
            yield process
        finally:
            process.terminate()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, wait_s: int) -> None:
    for _ in range(10 * wait_s):
        if process.poll() is not None:
            message = f"the server ended with status {process.returncode}"
            raise RuntimeError(message)
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - loopback
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError("the server did not become ready")


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds_by_thread(pid: int) -> dict[int, float]:
    """Processor time of each thread of a process; the main thread has the process's id."""
    ticks = os.sysconf("SC_CLK_TCK")
    seconds = {}
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        fields = stat.read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        seconds[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / ticks
    return seconds


def llama_bench(folder: Path, model: Path, *, threads: int, tokens: int, prompt: int = 0) -> float:
    """Returns tokens a second of one stream or prompt; tries flash attention on and off."""
    command = [
        str(folder / "llama-bench"), "-m", str(model), "-p", str(prompt), "-n", str(tokens),
        "-t", str(threads), "-r", "2", "-fa", "0,1", "-o", "json",
    ]  # fmt: skip
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return max(float(row["avg_ts"]) for row in rows)


def llama_batched_bench(
    folder: Path, model: Path, *, threads: int, streams: int, prompt: int, tokens: int
) -> float:
    """Returns tokens a second of many streams together while they generate."""
    return _batched_bench(folder, model, threads, (streams, prompt, tokens))[4]


def llama_batched_bench_s(
    folder: Path, model: Path, *, threads: int, streams: int, prompt: int, tokens: int
) -> float:
    """Returns the seconds for the prompts and tokens of many streams together."""
    return _batched_bench(folder, model, threads, (streams, prompt, tokens))[5]


def lm_eval(
    folder: Path, model: Path, file: Path, *, threads: int, items: int, few: int
) -> dict[str, Any]:
    """Run ``lm_eval_peer.py`` in the environment ``lmeval``; returns its result."""
    command = [
        str(folder / "lmeval" / "bin" / "python"),
        str(Path(__file__).with_name("lm_eval_peer.py")), str(file), "--model", str(model),
        "--threads", str(threads), "--items", str(items), "--few", str(few),
    ]  # fmt: skip
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(shown.splitlines()[-1])
    return found


def _batched_bench(
    folder: Path, model: Path, threads: int, shape: tuple[int, int, int]
) -> list[float]:
    """Returns the figures of one row: N_KV, T_PP, S_PP, T_TG, S_TG, T, S."""
    streams, prompt, tokens = shape
    command = [
        str(folder / "llama-batched-bench"), "-m", str(model),
        "-c", str(streams * (prompt + tokens) + 1024), "-b", "512", "-ub", "512",
        "-npp", str(prompt), "-ntg", str(tokens), "-npl", str(streams), "-t", str(threads),
    ]  # fmt: skip
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (row,) = re.findall(
        rf"^\|\s*{prompt} \|\s*{tokens} \|\s*{streams} \|(.*)\|$", out, re.MULTILINE
    )
    return [float(figure) for figure in row.split("|")]
