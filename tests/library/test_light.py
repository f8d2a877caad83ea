"""``import afterword`` takes no time: names are imported when they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import afterword

FILE = Path(afterword.__file__)
PUBLIC = set(vars(afterword)["__all__"])


def test_the_import_loads_nothing_else() -> None:
    program = (
        "import sys; before = set(sys.modules); import afterword; "
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout.decode().strip() == "['afterword']"


def test_every_public_name_is_there_and_typed() -> None:
    stub = ast.parse(FILE.with_suffix(".pyi").read_text())
    typed = {
        alias.name: f"{node.module}.{alias.name}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {*typed, "__version__"} == PUBLIC
    for name, place in typed.items():
        there = getattr(afterword, name)
        assert f"{there.__module__}.{there.__name__}" == place
    assert set(dir(afterword)) == PUBLIC


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Llm'"):
        _ = afterword.Llm  # type: ignore[attr-defined]
