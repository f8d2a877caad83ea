"""The programs and the notebook in ``examples/library`` run, and show what they say."""

from __future__ import annotations

import ast
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import afterword
from afterword import LLM
from afterword.config import EMBEDDED_MODEL

FOLDER = Path(__file__).parents[2] / "examples" / "library"


class Kept:
    """A model that stays open for the next program."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stay open."""


@pytest.fixture(scope="module")
def llm(embedded_model: Path) -> Iterator[LLM]:
    with LLM(f"{EMBEDDED_MODEL}={embedded_model}", slots=2, threads=1) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _one_model(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs share a model here, because opening it takes longer than they do."""

    def opened(name: str) -> Kept:
        assert name == EMBEDDED_MODEL
        return Kept(llm)

    monkeypatch.setattr(afterword, "LLM", opened)


def run(name: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Run a program. Returns the lines that it prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_every_file_is_tried_here() -> None:
    tried = set(re.findall(r'"(\w+\.(?:py|ipynb))"', Path(__file__).read_text()))
    assert {file.name for file in FOLDER.iterdir() if file.is_file()} == tried


def test_classification(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("classify.py", capsys)
    assert [line.split()[0] for line in lines] == ["positive", "negative"] * 2


def test_ranking(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("rank.py", capsys)
    assert len(lines) == 4
    assert "water boils" in lines[0]
    values = [float(line.split()[0]) for line in lines]
    assert values == sorted(values, reverse=True)


def test_extraction(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run("extract.py", capsys)
    assert first.startswith("{'Person': 'Anna', 'City': 'Paris', 'Year': '2004'}")
    assert second.startswith("{'Person': 'Peter', 'City': 'Berlin', 'Year': '2011'}")
    cached = re.search(r"\((\d+) of", second)
    assert cached is not None
    assert int(cached[1]) > 50


def test_perplexity(llm: LLM, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    english, shuffled, whole = (line.split() for line in run("perplexity.py", capsys))
    assert float(english[1]) < float(whole[1]) < float(shuffled[1])
    file = tmp_path / "a.txt"
    file.write_text("The sea was calm. " * 20)
    lines = run("perplexity.py", capsys, str(file))
    assert lines[0].split()[1] == lines[1].split()[1]
    file.write_bytes(b"\xef\xbb\xbfThe sea.\r\n")
    (score,) = llm.score("The sea.\r\n")
    assert f"{score.perplexity:.2f}" in run("perplexity.py", capsys, str(file))[0]
    file.write_bytes(b"")
    assert run("perplexity.py", capsys, str(file))[1].split()[1:3] == ["1.00", "0.000"]


def test_the_notebook() -> None:
    """Its cells run in order, as Jupyter runs them, and what they show draws itself."""
    notebook = json.loads((FOLDER / "explore.ipynb").read_text())
    assert notebook["nbformat"] == 4
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    names: dict[str, Any] = {}
    shown = [
        value
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
        for value in [execute("".join(cell["source"]), names)]
        if value is not None
    ]
    _, completion, figure, table, score, worst = shown
    assert "Paris" in completion._repr_html_()
    assert len(figure.axes[0].patches) == len(table) == len(completion.choices[0].logprobs.tokens)
    assert "<span" in score._repr_html_()
    assert " Mar" in set(worst["token"])


def execute(source: str, names: dict[str, Any]) -> Any:
    """Run a cell. Returns the value of its last expression, None if it ends otherwise."""
    *body, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        body.append(last)
        last = ast.Expr(ast.Constant(None))
    exec(compile(ast.Module(body, []), "cell", "exec"), names)  # noqa: S102 - our own notebook
    ending = compile(ast.fix_missing_locations(ast.Expression(last.value)), "cell", "eval")
    return eval(ending, names)  # noqa: S307 - the same
