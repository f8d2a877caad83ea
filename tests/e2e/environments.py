"""Environments inside ``.venv``, for clients that cannot share the tests' own."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from support.locks import held

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv" / "environments"
"""Of its own, because an environment is made in an empty folder."""


def environment(name: str) -> Path:
    """Returns the folder of an environment's programs. Made anew if its requirements change."""
    requirements = ROOT / "requirements" / f"{name}.txt"
    folder = FOLDER / name
    mark = folder / "installed"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    FOLDER.mkdir(exist_ok=True)
    with held(FOLDER / f"{name}.lock"):
        if not mark.exists() or mark.read_text() != wanted:
            _make(folder, requirements)
            mark.write_text(wanted)
    return folder / "bin"


def _make(folder: Path, requirements: Path) -> None:
    # Much faster than pip, which has taken longer than a test may.
    uv = Path(sys.executable).parent / "uv"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    subprocess.run(
        [
            uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python",
            "--no-deps", "--require-hashes", "--requirement", requirements,
        ],
        check=True,
    )  # fmt: skip


def run_program(name: str, program: Path, *arguments: str) -> str:
    """Run a Python program in an environment. Returns its standard output."""
    python = environment(name) / "python"
    done = subprocess.run(
        [python, program, *arguments], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
