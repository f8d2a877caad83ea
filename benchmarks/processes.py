"""Other processes: their memory, CPU time and cores. Needs the standard library alone.

A figure is not a number (nan) on systems that do not tell it. Linux tells all of them.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_PROC = Path("/proc")


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    statm = _PROC / f"{pid}/statm"
    if statm.exists():
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    command = ["/bin/ps", "-o", "rss=", "-p", str(pid)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024


def main_thread_s(pid: int) -> float:
    """CPU seconds of a process's main thread, counted in the system's ticks."""
    stat = _PROC / f"{pid}/task/{pid}/stat"
    if not stat.exists():
        return math.nan
    fields = stat.read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Returns the CPU seconds of a process and its children, by the scheduler's clock.

    Counting ticks would be wrong for a process that wakes for a token, because it wakes on a tick.
    """
    children = _PROC / f"{pid}/task/{pid}/children"
    if not children.exists():
        return math.nan
    processes = [pid, *map(int, children.read_text(encoding="ascii").split())]
    threads = [t for p in processes for t in (_PROC / f"{p}/task").glob("*/schedstat")]
    return sum(int(thread.read_text(encoding="ascii").split()[0]) for thread in threads) / 1e9


def available_bytes() -> int:
    """Returns the bytes that can be allocated without swapping; half the memory if nobody tells."""
    file = _PROC / "meminfo"
    if not file.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    lines = file.read_text(encoding="ascii").splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kib) * 1024


def cores() -> Sequence[int]:
    """Returns the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


def on_core(core: int, command: Sequence[str]) -> list[str]:
    """Returns the command for one core; the command itself if the system cannot do that."""
    return [*(("taskset", "-c", str(core)) if shutil.which("taskset") else ()), *command]
