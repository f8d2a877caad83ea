"""The server as a process."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

AFTERWORD = Path(sys.executable).parent / "afterword"
MODEL = "smollm2-135m-instruct"


@dataclass
class Server:
    """A running server; ``welcome`` is what it printed on standard output."""

    process: subprocess.Popen[str]
    welcome: str
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def figure(self, name: str) -> float:
        """Returns a figure of the engine from /metrics."""
        text = httpx2.get(f"{self.url}/metrics").text
        found = re.search(rf"^afterword_engine_{name}\{{.*\}} (.*)$", text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal. Returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait()


@contextmanager
def serving(
    errors: Path,
    *arguments: str,
    inherit: socket.socket | None = None,
    program: Sequence[str | Path] = (AFTERWORD,),
) -> Iterator[Server]:
    """Start ``afterword serve`` on a free port; standard error goes to the file ``errors``.

    ``inherit`` is a socket that it gets as systemd would hand it over. ``program`` is what runs in
    place of the installed command.
    """
    command: list[str | Path] = [*program, "serve", "--port", "0", *arguments]
    if inherit is not None:
        passed = inherit.fileno()
        hand_over = f'exec 3<&{passed}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        command = ["bash", "-c", hand_over, "bash", *command]
    kept = () if inherit is None else (inherit.fileno(),)
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, pass_fds=kept
        ) as process,
    ):
        assert process.stdout is not None
        try:
            welcome = ""
            while "curl" not in welcome:
                line = process.stdout.readline()
                assert line, errors.read_text()
                welcome += line
            found = re.search(r"ready on (https?://\S+)", welcome)
            assert found is not None
            yield Server(process, welcome, found[1])
        finally:
            process.kill()


def run(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``afterword`` to its end."""
    command = [AFTERWORD, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, input=text)
