"""The table of ``make zoo``: a model that cannot be served, or does not end, is a row."""

from __future__ import annotations

from pathlib import Path

from zoo.making import make_model
from zoo.table import row_of


def test_a_model_that_is_served_exactly(tmp_path: Path) -> None:
    row = row_of(make_model("llama", tmp_path / "llama.gguf"), rounds=1, limit_s=300)
    assert row.outcome == "exact, shares"
    assert str(row).startswith("| llama | yes | exact (13) | exact (26) | exact (")
    assert row.cells["batch invariance"].text.startswith("in any batch")


def test_a_file_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(b"GGUF, but no more than that")
    row = row_of(path, rounds=1, limit_s=300)
    assert row.outcome == "refused"
    assert str(tmp_path) not in str(row)
    assert "is a broken GGUF file" in row.cells["load"].text


def test_a_model_that_takes_too_long(tmp_path: Path) -> None:
    row = row_of(make_model("llama", tmp_path / "llama.gguf"), rounds=1, limit_s=0.01)
    assert row.outcome == "wrong or failed"
    assert "takes more than" in row.cells["load"].text
