"""Real PostgreSQL and Redis from Debian's packages, each in a folder and on a socket of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.locks import held

OWNER = "postgres" if os.geteuid() == 0 else None
"""PostgreSQL does not run as root; its package creates this user."""


def program(name: str, package: str) -> str:
    """Returns a program's path; as root, installs its Debian package if it is missing."""
    with held(Path(tempfile.gettempdir(), f"afterword-apt-{os.geteuid()}.lock")):
        found = find(name)
        if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
            _install(package)
            found = find(name)
    if found is None:
        pytest.skip(f"{name} is not here, and only root can install {package}")
    return found


def _install(package: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    subprocess.run([*apt, "update"], check=True, env=environment, stdout=subprocess.DEVNULL)
    subprocess.run(
        [*apt, "install", "--yes", "--no-install-recommends", package],
        check=True, env=environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def find(name: str) -> str | None:
    """Returns a program on the PATH or in Debian's folders of PostgreSQL, newest first."""
    debians = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([*map(str, debians), os.environ["PATH"]]))


@dataclass
class Postgres:
    """A PostgreSQL server on a Unix socket in ``folder``."""

    folder: Path
    control: str

    def url(self, name: str) -> str:
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off"
        self._control("start", "-o", options, "-l", str(self.folder / "log"))

    def stop(self, mode: str = "immediate") -> None:
        self._control("stop", "-m", mode)

    def sql(self, statement: str) -> None:
        psql = program("psql", "postgresql-client")
        subprocess.run(
            [psql, "-q", "-h", str(self.folder), "-U", "postgres", "-c", statement],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def _control(self, *command: str) -> None:
        subprocess.run(
            [self.control, "-D", str(self.folder / "data"), "-w", "-s", *command],
            check=True, cwd="/", stdout=subprocess.DEVNULL, user=OWNER, group=OWNER,
        )  # fmt: skip


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Start a server; its files are removed at the end."""
    initdb = program("initdb", "postgresql")
    control = program("pg_ctl", "postgresql")
    # The path is short, because a socket's name has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="afterword-pg-"))
    try:
        if OWNER is not None:
            shutil.chown(folder, OWNER, OWNER)
        folder.chmod(0o755)
        subprocess.run(
            [initdb, "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "-N",
             "--locale=C", "-E", "UTF8"],
            check=True, cwd="/", stdout=subprocess.DEVNULL, user=OWNER, group=OWNER,
        )  # fmt: skip
        server = Postgres(folder, control)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@contextmanager
def redis() -> Iterator[str]:
    """Start a server; yields its URL."""
    server = program("redis-server", "redis-server")
    folder = Path(tempfile.mkdtemp(prefix="afterword-redis-"))
    socket = folder / "socket"
    command: list[str | Path] = [
        server,
        "--port",
        "0",
        "--unixsocket",
        str(socket),
        "--save",
        "",
        "--dir",
        folder,
    ]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if "eady to accept connections" in line:
                        break
                yield f"redis+unix://{socket}"
            finally:
                process.kill()
    finally:
        shutil.rmtree(folder)
