"""What the machine has for this process."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path


def memory_limit() -> int:
    """Bytes that this process may use: the machine's memory, or less where its group is limited."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup", name)
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdecimal():
            limit = min(limit, int(text))
    return limit


@cache
def processor() -> str:
    """The model of the processor and what it can do."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except FileNotFoundError:
        return platform.processor()
    return "|".join(re.findall(r"^(?:model name|flags|Features)\s*:.*$", text, re.MULTILINE)[:2])
