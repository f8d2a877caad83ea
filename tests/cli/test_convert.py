"""``afterword models convert`` and ``prune``: files of the user, and notes about models."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from click.testing import CliRunner

from afterword.cli import cli
from afterword.cli.models import convert_model
from afterword.core.errors import ConfigError
from support.tiny_gguf import make_gguf


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_file_is_converted_once_and_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = make_gguf(tmp_path / "tiny.gguf")
    folder = ("--models-dir", str(tmp_path / "models"))
    assert run("models", "convert", str(tiny), "--to", "q8_0", *folder) == "tiny-q8_0.gguf\n"
    converted = tmp_path / "tiny-q8_0.gguf"
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(converted).tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert sorted(path.name for path in tmp_path.glob("tiny*")) == ["tiny-q8_0.gguf", "tiny.gguf"]
    model = ("--model", f"t={converted}", "--slots", "1", "--threads", "1", "--port", "0")
    data = ("--data-dir", str(tmp_path / "data"))
    rows = dict(
        line.split(maxsplit=1)
        for line in run("doctor", *model, *folder, *data).splitlines()
        if line
    )
    assert rows["format"].endswith("Q8_0")
    with pytest.raises(ConfigError, match="exists already"):
        CliRunner().invoke(
            convert_model, [str(tiny), "--to", "q8_0", *folder], catch_exceptions=False
        )


def test_a_file_that_cannot_be_converted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: bytes, part: bytes, __: object) -> int:
        Path(part.decode()).write_bytes(b"half")
        return 1

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("afterword.engine.llama.binding._quantize", fail)
    tiny = make_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(ConfigError, match="cannot convert it to q8_0"):
        CliRunner().invoke(convert_model, [str(tiny), "--to", "q8_0"], catch_exceptions=False)
    assert [path.name for path in tmp_path.glob("tiny*")] == ["tiny.gguf"]


def test_prune_removes_what_was_kept_and_what_an_older_version_converted(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "weights").mkdir(parents=True)
    (models / "weights" / "old.gguf").write_bytes(b"x" * 3_000_000)
    assert run("models", "prune", "--models-dir", str(models)) == "freed 3 MB\n"
    assert not (models / "weights").exists()
