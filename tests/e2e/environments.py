"""Environments inside ``.venv``, for clients that cannot share the tests' own."""

from __future__ import annotations

import hashlib
import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(name: str) -> Path:
    """Returns the folder of an environment's programs. Made anew if its requirements change."""
    requirements = ROOT / "requirements" / f"{name}.txt"
    folder = ROOT / ".venv" / name
    mark = folder / "installed"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not mark.exists() or mark.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        command = f"{folder}/bin/python -m pip install --quiet --no-deps --require-hashes".split()
        subprocess.run([*command, "--requirement", requirements], check=True)
        mark.write_text(wanted)
    return folder / "bin"


def run_program(name: str, program: Path, *arguments: str) -> str:
    """Run a Python program in an environment. Returns its standard output."""
    python = environment(name) / "python"
    done = subprocess.run(
        [python, program, *arguments], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
