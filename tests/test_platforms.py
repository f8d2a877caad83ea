"""The package on a system that is not Linux."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "afterword"
MACHINE = SOURCE / "core" / "machine.py"
PLACES = ("/proc", "/sys/", "/dev/", "/etc/", "/run/")
"""How paths begin that other systems do not have, or fill otherwise."""
PROGRAMS = {"afterword.__main__", "afterword.ledger.migrations.env"}
"""Modules that cannot be imported on any system."""
IMPORT_ALL = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from support.elsewhere import leave_linux
leave_linux()
import afterword, importlib, pkgutil
for found in pkgutil.walk_packages(afterword.__path__, "afterword."):
    if found.name not in {PROGRAMS}:
        importlib.import_module(found.name)
        print(found.name)
"""


def modules() -> Iterator[str]:
    """Yields the names of all modules that can be imported."""
    for file in SOURCE.rglob("*.py"):
        parts = file.relative_to(SOURCE.parent).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name not in PROGRAMS and name != "afterword":
            yield name


@pytest.mark.slow
def test_every_module_is_imported_without_what_only_linux_has() -> None:
    command = [sys.executable, "-c", IMPORT_ALL]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(modules())


def places(file: Path) -> Iterator[str]:
    """Yields the places of the system that a file names."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and str(node.value).startswith(PLACES):
            yield f"{file.relative_to(SOURCE)}:{node.lineno}: {node.value!r}"


def test_one_module_knows_the_places_of_linux() -> None:
    """mypy for macOS finds the calls, but not the files."""
    others = sorted(file for file in SOURCE.rglob("*.py") if file != MACHINE)
    assert [place for file in others for place in places(file)] == []
    assert len(list(places(MACHINE))) > 1
