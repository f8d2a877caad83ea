"""What a file says of itself controls no terminal."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.table import Table

from afterword.cli import main
from afterword.cli.terminal import bare_table, print_rows, print_table
from support.tiny_gguf import make_gguf

CONTROLS = "a\n\x1b[31m\u202eb"
SHOWN = "a\ufffd\ufffd[31m\ufffdb"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["afterword", *words])
    with pytest.raises(SystemExit):
        main()


def test_the_name_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_gguf(tmp_path / "m.gguf", changed={"general.name": CONTROLS})
    run(monkeypatch, "models", "show", str(path))
    assert f"name              {SHOWN}\n" in capsys.readouterr().out


def test_a_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``models pull`` fetches no paths."""
    for path, kind in ((tmp_path / "m.gguf", "no such file"), (tmp_path, "is a folder, not a")):
        run(monkeypatch, "models", "show", str(path))
        assert capsys.readouterr().err.startswith(f"afterword: {path}: {kind}")


def test_what_a_file_is_refused_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"general.architecture": CONTROLS, f"{CONTROLS}.pooling_type": 1}
    path = make_gguf(tmp_path / "m.gguf", changed=changed)
    run(monkeypatch, "models", "show", str(path))
    refused = capsys.readouterr().err
    assert "is an embedding model" in refused
    assert refused.strip().isprintable()


def _printed(table: Table, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_table(table)
    return out.getvalue()


def _table() -> Table:
    table = bare_table("NAME", "SOURCE")
    for name in ("TOTAL", "MEAN"):
        table.add_column(name, justify="right")
    table.add_row("m" * 30, "/a/path/" + "x" * 40, "-123456.7890", "0.1 %  -2.5")
    return table


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_without_a_terminal_a_row_is_a_line(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"TERM": term, "COLUMNS": "20", "FORCE_COLOR": "", "TTY_COMPATIBLE": "0"}
    _, row = _printed(_table(), environment, monkeypatch).splitlines()
    cells = ["m" * 30, "/a/path/" + "x" * 40, "-123456.7890", "0.1", "%", "-2.5"]
    assert row.split() == cells


def test_a_narrow_terminal_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is folded. Numbers stay whole: cut ones would be other numbers."""
    environment = {"TERM": "xterm", "COLUMNS": "20", "NO_COLOR": "1", "TTY_COMPATIBLE": "1"}
    shown = _printed(_table(), environment, monkeypatch)
    assert "-123456.7890" in shown
    assert "0.1 %  -2.5" in shown
    assert shown.count("m") == 30
    assert shown.count("x") == 40
    assert "…" not in shown


def test_rows_are_printed_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    """A list of millions takes no memory, and its first rows do not wait for its last."""

    def rows() -> Iterator[tuple[str, str]]:
        for number in range(1500):
            yield "a", str(number)
        assert "a 1499\n" in capsys.readouterr().out
        yield "wider", "b\x1b"

    print_rows(("N", "M"), rows())
    assert capsys.readouterr().out.splitlines() == ["wider b\N{REPLACEMENT CHARACTER}"]
