"""The servers under test, as processes that are killed and started again on the same port."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from chaos.shifted import ClockShift
from chaos.weather import Weather
from support.processes import free_port

_TESTS = Path(__file__).parents[1]
_READY = re.compile(rb"ready on http")
_START_S = 600.0
_AGAIN_S = 0.5


class StartFailed(Exception):
    """A server did not come up."""


class Member:
    """One server. ``port`` stays the same; ``starts`` counts its processes."""

    def __init__(self, name: str, flags: Sequence[str], folder: Path, weather: Weather) -> None:
        self.name = name
        self.port = free_port()
        self.clock = ClockShift(folder / f"{name}.clock")
        self.starts = 0
        self.ready_s = 0.0
        self.logs: list[Path] = []
        self.failed_starts: list[str] = []
        self._folder = folder
        self._weather = weather
        self._command = [
            "nice", sys.executable, "-m", "chaos.shifted", str(folder / f"{name}.clock"),
            "serve", "--port", str(self.port), *flags,
        ]  # fmt: skip
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the process and wait until it is ready, more than once if it has to be.

        Raises ``StartFailed`` if it ends although the ledger is well.
        """
        while True:
            began_s = time.monotonic()
            try:
                await asyncio.wait_for(self._start(), _START_S)
            except StartFailed as error:
                self.failed_starts.append(str(error))
                if not self._weather.met(self.name, began_s, None, "locked", "full", after_s=10):
                    raise
                await asyncio.sleep(_AGAIN_S)
            else:
                self.ready_s = time.monotonic()
                return

    async def _start(self) -> None:
        self.starts += 1
        log = self._folder / f"{self.name}-{self.starts}.log"
        self.logs.append(log)
        path = os.pathsep.join([str(_TESTS), os.environ.get("PYTHONPATH", "")])
        with log.open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=asyncio.subprocess.PIPE, stderr=errors,
                env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
            )  # fmt: skip
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if _READY.search(line):
                return
        status = await self._process.wait()
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise StartFailed(f"{self.name} ended with status {status}: {' '.join(last)}")

    async def kill(self) -> None:
        """End the process as a crash does."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        """End the process as an operator does. Returns its exit status."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.terminate()
        return await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
