"""What the machine has for this process."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_DONT_NEED = 4
"""``madvise``'s MADV_DONTNEED."""


def memory_limit() -> int:
    """Bytes that this process may use: the machine's memory, or less where its group is limited."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup", name)
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdecimal():
            limit = min(limit, int(text))
    return limit


def resident_bytes() -> int:
    """Memory that this process takes now; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def release_pages(files: Sequence[Path]) -> None:
    """Let the process have no page of files that it has mapped; what it reads again comes back."""
    if sys.platform != "linux":
        return
    names = {str(file.resolve()) for file in files}
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, name = line.partition(" ")
        if name.partition("/")[2] and f"/{name.partition('/')[2]}" in names:
            start, end = (int(text, 16) for text in span.split("-"))
            advise(start, end - start, _DONT_NEED)


@cache
def processor() -> str:
    """The model of the processor and what it can do."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except FileNotFoundError:
        return platform.processor()
    return "|".join(re.findall(r"^(?:model name|flags|Features)\s*:.*$", text, re.MULTILINE)[:2])
