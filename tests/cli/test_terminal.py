"""What a file says of itself controls no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from afterword.cli import main
from afterword.cli.terminal import print_rows
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
    assert f"name           {SHOWN}\n" in capsys.readouterr().out


def test_what_a_file_is_refused_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"general.architecture": CONTROLS, f"{CONTROLS}.pooling_type": 1}
    path = make_gguf(tmp_path / "m.gguf", changed=changed)
    run(monkeypatch, "models", "show", str(path))
    refused = capsys.readouterr().err
    assert "is an embedding model" in refused
    assert refused.strip().isprintable()


def test_rows_are_printed_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    """A list of millions takes no memory, and its first rows do not wait for its last."""

    def rows() -> Iterator[tuple[str, str]]:
        for number in range(1500):
            yield "a", str(number)
        assert "a 1499\n" in capsys.readouterr().out
        yield "wider", "b\x1b"

    print_rows(("N", "M"), rows())
    assert capsys.readouterr().out.splitlines() == ["wider b\N{REPLACEMENT CHARACTER}"]
