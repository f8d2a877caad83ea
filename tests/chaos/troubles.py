"""What goes wrong: kills, halts, a locked database, a full disk, jumps of the clock."""

from __future__ import annotations

import asyncio
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa

from afterword.ledger.tables import processes, reservations, secrets, spending, usage
from chaos.servers import Member
from chaos.weather import Weather

DISK_MIB = 96
_HOUR_S = 3600.0
_FROZEN_SHARE, _FROZEN_TIMES = 0.15, 4.5
"""Some halts last so many times the longest: others take the process for dead after 30 s."""
_FEW_BYTES = 256 * 1024
"""Smaller than a segment of the journal, so that no new one can be made."""


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small file system at a folder, if this may. Yields whether it did."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    mounted = (
        shutil.which("mount") is not None
        and not subprocess.run(mount, check=False, capture_output=True).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Troubles:
    """Makes trouble for servers. ``disk`` is the small file system, None if there is none.

    Each lasts at most ``longest_s``, but for some halts.
    """

    def __init__(
        self, members: list[Member], database: sa.Engine, disk: Path | None, weather: Weather,
        dice: random.Random, *, longest_s: float,
    ) -> None:  # fmt: skip
        self.counts: Counter[str] = Counter()
        self._members = members
        self._database = database
        self._disk = disk
        self._weather = weather
        self._dice = dice
        self._longest_s = longest_s

    async def kill(self, member: Member) -> None:
        """Kill a server, and let some time pass."""
        self.counts["kill -9"] += 1
        await member.kill()
        await asyncio.sleep(self._dice.uniform(0, self._longest_s / 5))

    async def halt(self) -> None:
        """Stop a process for some seconds, and let it go on (SIGSTOP, SIGCONT)."""
        member = self._dice.choice(self._members)
        seconds = self._some_s()
        if self._dice.random() < _FROZEN_SHARE:
            seconds = _FROZEN_TIMES * self._longest_s
        self.counts["SIGSTOP"] += 1
        # Where it stops it may hold the lock of the database, which the others wait for.
        with self._weather.spell("stopped", member.name), self._weather.spell("holding"):
            member.send(signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)
            finally:
                member.send(signal.SIGCONT)

    async def lock(self) -> None:
        """Hold the database as another process that writes for some seconds."""
        with self._weather.spell("locked"):
            try:
                await asyncio.to_thread(self._hold_lock, self._some_s())
            except sa.exc.OperationalError:
                self.counts["database too busy to be locked"] += 1
            else:
                self.counts["database locked"] += 1

    async def fill(self) -> None:
        """Leave no room on the disk for some seconds."""
        self.counts["disk full" if self._disk else "files of limited size"] += 1
        fullness = self._full_disk() if self._disk else self._limited_files()
        with self._weather.spell("full"), fullness:
            await asyncio.sleep(self._some_s())

    async def jump(self) -> None:
        """Move the date of one server; the others keep theirs."""
        self.counts["clock jump"] += 1
        hours = self._dice.choice([-30, -2, -0.02, 0, 0.02, 3, 30])
        self._dice.choice(self._members).clock.set(hours * _HOUR_S)

    def _some_s(self) -> float:
        return self._dice.uniform(0.2, 1) * self._longest_s

    def _hold_lock(self, seconds: float) -> None:
        """Keep a transaction open that excludes every other writer."""
        tables = [table.name for table in (usage, spending, reservations, processes, secrets)]
        with self._database.connect() as connection, connection.begin():
            if self._database.dialect.name == "postgresql":
                names = ", ".join(f'"{name}"' for name in tables)
                connection.execute(sa.text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))
            time.sleep(seconds)

    @contextmanager
    def _full_disk(self) -> Iterator[None]:
        assert self._disk is not None
        filler = self._disk / "filler"
        try:
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                for size in (1 << 20, 4096):
                    with suppress(OSError):
                        while True:
                            file.write(b"x" * size)
            yield
        finally:
            filler.unlink()

    @contextmanager
    def _limited_files(self) -> Iterator[None]:
        """Without root: the kernel refuses to make files of these processes longer."""
        if sys.platform != "linux":
            raise RuntimeError("only Linux limits the files of another process")
        pids = [member.pid for member in self._members if member.running]
        limits = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
        try:
            for pid, (_, hard) in limits.items():
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (_FEW_BYTES, hard))
            yield
        finally:
            for pid, limit in limits.items():
                with suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
