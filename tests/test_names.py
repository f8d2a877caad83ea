"""A class name stands once in the tree, and nothing imports from benchmarks/."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = {"benchmarks", *(file.stem for file in (ROOT / "benchmarks").glob("*.py"))}


@cache
def nodes(file: Path) -> Sequence[ast.AST]:
    """Every node of a file's syntax tree."""
    return list(ast.walk(ast.parse(file.read_text())))


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or within functions."""
    for node in nodes(file):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module


def test_a_class_name_stands_once() -> None:
    """Private classes and classes within functions, too."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for file in sorted((ROOT / "src" / "afterword").rglob("*.py")):
        for node in nodes(file):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert places
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("folder", ["src", "tests"])
def test_nothing_imports_from_benchmarks(folder: str) -> None:
    """``tests/support`` is for what tests and benchmarks share."""
    found = [
        f"{file.relative_to(ROOT)}: {module}"
        for file in sorted((ROOT / folder).rglob("*.py"))
        for module in imported(file)
        if module.partition(".")[0] in BENCHMARKS
    ]
    assert found == []
