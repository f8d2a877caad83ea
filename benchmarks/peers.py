"""Runs the programs of peers from a folder, and reads their figures."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any


def llama_server(
    folder: Path, model: Path, port: int, *, threads: int, slots: int, ctx: int
) -> list[str]:
    """Returns the command of llama-server; ``ctx`` is in tokens for each slot."""
    return [
        str(folder / "llama-server"), "-m", str(model), "-c", str(slots * ctx), "-np", str(slots),
        "-t", str(threads), "--port", str(port), "--host", "127.0.0.1",
    ]  # fmt: skip


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
