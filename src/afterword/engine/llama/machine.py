"""Memory and processor of the machine, as far as this process may use them."""

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
    """Returns the bytes that this process may use: the machine's memory, or its group's limit."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup", name)
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdecimal():
            limit = min(limit, int(text))
    return limit


def resident_bytes() -> int:
    """Returns the resident bytes of this process; 0 if the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def release_pages(files: Sequence[Path]) -> None:
    """Release all pages of mapped files; reading them loads them again. Linux only."""
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
    """Returns the processor's model and features."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except FileNotFoundError:
        return platform.processor()
    return "|".join(re.findall(r"^(?:model name|flags|Features)\s*:.*$", text, re.MULTILINE)[:2])
