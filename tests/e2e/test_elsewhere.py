"""The command without anything that Linux has and macOS has not: serving, the ledger, doctor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2

from e2e.process import run, serving
from support import elsewhere

PROGRAM = (sys.executable, elsewhere.__file__)
BODY: dict[str, Any] = {
    "model": "tiny", "prompt": "a", "ignore_eos": True, "max_tokens": 5, "temperature": 0,
}  # fmt: skip


def test_answers_are_those_of_linux(tmp_path: Path, tiny_model: Path) -> None:
    flags = ("--model", f"tiny={tiny_model}", "--slots", "2")
    found = []
    for name, program in (("linux", (*PROGRAM[:1], "-m", "afterword")), ("other", PROGRAM)):
        data = ("--data-dir", str(tmp_path / name))
        with serving(tmp_path / f"{name}.err", *flags, *data, program=program) as server:
            answer = httpx2.post(f"{server.url}/v1/completions", json=BODY, timeout=60).json()
            assert server.stop() == 0
        found.append((answer["choices"], answer["system_fingerprint"]))
        assert "ERROR" not in (tmp_path / f"{name}.err").read_text()
    assert found[0] == found[1]


def test_the_journal_outlives_its_process(tmp_path: Path, tiny_model: Path) -> None:
    data = ("--data-dir", str(tmp_path / "data"), "--journal-sync", "always")
    flags = ("--model", f"tiny={tiny_model}", "--slots", "2", *data)
    with serving(tmp_path / "stderr", *flags, program=PROGRAM) as server:
        answer = httpx2.post(f"{server.url}/v1/completions", json=BODY, timeout=60).json()
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    assert list((tmp_path / "data" / "journal").iterdir())
    done = run("usage", "--requests", "--json", *data[:2])
    (row,) = map(json.loads, done.stdout.splitlines())
    assert row["id"] == answer["id"]
    assert row["completion_tokens"] == 5


def test_doctor_says_what_it_can(tmp_path: Path, tiny_model: Path) -> None:
    flags = ("--model", f"m={tiny_model}", "--slots", "2", "--data-dir", str(tmp_path))
    command = [*PROGRAM, "doctor", *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    columns = (line.partition("  ") for line in done.stdout.splitlines())
    rows = {name: said.strip() for name, _, said in columns}
    assert rows["cores"] == str(os.cpu_count())
    assert rows["kernels"] == "no vector instructions known"
    assert float(rows["memory"].removesuffix(" GiB")) > 0.1
    assert float(rows["process"].partition(" GiB")[0]) > 0
    assert "kept: answers do not depend" in done.stdout
