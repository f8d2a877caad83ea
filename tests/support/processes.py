"""Starts other servers on a free port, waits until they answer, stops them at the end."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def running(
    command: list[str],
    port: int,
    *,
    ready: str = "/health",
    wait_s: int = 60,
    log: str | Path = os.devnull,
) -> Iterator[int]:
    """Start a server, wait until it answers, give its process id, stop it."""
    with started(command, log) as process:
        _wait_until_ready(process, f"http://127.0.0.1:{port}{ready}", wait_s)
        yield process.pid


@contextmanager
def started(command: list[str], log: str | Path = os.devnull) -> Iterator[subprocess.Popen[bytes]]:
    """A server that has just been started; it is stopped at the end. ``log`` gets what it says."""
    # Where this is set, each start of a Python program compiles it anew.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with (
        Path(log).open("ab") as said,
        subprocess.Popen(command, env=environment, stdout=said, stderr=said) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, wait_s: int) -> None:
    for _ in range(10 * wait_s):
        if process.poll() is not None:
            message = f"the server ended with status {process.returncode}"
            raise RuntimeError(message)
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - loopback
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError("the server did not become ready")
