"""What people see of weights: the table of forms, the command to run, and the list of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from afterword.cli import bench, cli
from afterword.cli.terminal import Terminal
from afterword.config import EMBEDDED_MODEL, EMBEDDED_SOURCE, Settings
from afterword.engine.llama.verdict import Fidelity, Figures, Speeds, choose
from tiny_gguf import make_gguf

SPEEDS = Speeds(prefill=200, one=100, few=250, many=300, scoring=180)
FOUND = {
    "as-is": Figures(
        batch_invariant=True, speeds=SPEEDS, memory_bytes=300_000_000, file_bytes=98_000_000,
        fidelity=Fidelity(0.00312, 0.964, 2000),
    ),
    "q8_0": Figures(
        batch_invariant=True,
        speeds=msgspec.structs.replace(SPEEDS, prefill=400, many=600),
        memory_bytes=350_000_000, file_bytes=144_000_000, fidelity=Fidelity(0.00429, 0.957, 2000),
    ),
    "f16": Figures(
        batch_invariant=False, speeds=SPEEDS, memory_bytes=560_000_000, file_bytes=270_000_000,
        fidelity=Fidelity(0.0001, 0.996, 2000),
    ),
    "bf16": Figures(left_out="bf16: its weights may take more than half of memory"),
}  # fmt: skip


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bench, "examine", lambda _, subject, say: (FOUND, choose(FOUND, exact=subject.exact))
    )


def test_the_table_has_every_figure_and_the_command(
    tmp_path: Path, measured: None, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = make_gguf(tmp_path / "tiny.gguf")
    bench.bench(Settings(models={"t": str(tiny)}, threads=1), Terminal())
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["q8_0"] == ["400", "100", "250", "600", "180", "1.59", "350", "MB", "144", "MB",
                            "0.00429", "95.7%", "kept"]  # fmt: skip
    assert rows["as-is"][5] == "1.00"
    assert rows["f16"][-2:] == ["not", "kept"]
    assert " ".join(rows["bf16"]) == "bf16: its weights may take more than half of memory"
    assert lines[-2].startswith("recommended: q8_0: 1.59 times")
    assert lines[-1] == f"  afterword serve --model t={tiny} --threads 1 --weights q8_0"


def test_the_embedded_model_needs_no_name_in_the_command(
    measured: None, capsys: pytest.CaptureFixture[str], embedded_model: Path
) -> None:
    models = {EMBEDDED_MODEL: EMBEDDED_SOURCE, "far": "vllm+http://127.0.0.1:1/v1"}
    bench.bench(Settings(models=models, kv="fast"), Terminal())
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "  afterword serve --kv fast --weights q8_0"
    assert "far: other servers are not measured" in said.err


def test_a_converted_file_is_served_listed_and_pruned(tmp_path: Path) -> None:
    tiny = make_gguf(tmp_path / "tiny.gguf")
    models_dir = ("--models-dir", str(tmp_path / "models"))
    model = ("--model", f"t={tiny}", "--weights", "q8_0")

    def run(*arguments: Any) -> str:
        done = CliRunner().invoke(cli, [*arguments, *models_dir], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    shown = run("doctor", *model, "--slots", "1", "--threads", "1", "--port", "0")
    rows = dict(line.split(maxsplit=1) for line in shown.splitlines() if line)
    assert rows["weights"] == "q8_0"
    assert rows["converted_from"] == "Q4_1"
    assert rows["format"].endswith("Q8_0")
    (converted,) = (tmp_path / "models" / "weights").glob("*-q8_0-*.gguf")
    size = f"{converted.stat().st_size / 1e6:,.0f} MB"
    assert f"tiny.gguf as q8_0 {size}" in " ".join(run("models", "list").split())
    assert run("models", "prune") == f"freed {size}\n"
    assert "q8_0" not in run("models", "list")
