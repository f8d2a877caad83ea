"""The machine as this process may use it: cores, memory, processor, disk, connections.

No other module calls what Linux alone has. Each call has a fallback here, made for macOS.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import resource
import socket
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from afterword.core.errors import ConfigError

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_DONT_NEED = 4
"""``madvise``'s MADV_DONTNEED, as Linux means it."""
# Options of glibc's mallopt: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in bytes, and M_ARENA_MAX.
_MALLOC_OPTIONS = ((-1, 4 << 20), (-3, 1 << 20), (-8, 2))
_ZERO_BYTES = 1 << 20
"""The most zeros written at once."""
_SYSCTL_BYTES = 256
"""The longest value that is read from the kernel of macOS."""
# Features as Linux names them, and as macOS does.
_FEATURES = {
    "avx2": "hw.optional.avx2_0",
    "f16c": "hw.optional.f16c",
    "fma": "hw.optional.fma",
    "avx512f": "hw.optional.avx512f",
    "asimd": "hw.optional.neon",
    "asimddp": "hw.optional.arm.FEAT_DotProd",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
}
# TCP_KEEPALIVE is macOS's name of TCP_KEEPIDLE. Each system has one of the two.
_KEEP_ALIVE = (
    ("TCP_KEEPIDLE", 30),
    ("TCP_KEEPALIVE", 30),
    ("TCP_KEEPINTVL", 10),
    ("TCP_KEEPCNT", 3),
)
_RETRANSMIT_DROP = 0x80
"""macOS's TCP_RXT_CONNDROPTIME, which Python does not name; its value is in seconds."""
_MOST_MS = 2**31 - 1
"""24 days. The system takes no longer time."""
_NOT_OFFERED = {errno.EINVAL, errno.ENOTSUP, errno.ENOTTY}
"""Errors of a file system that has no F_FULLFSYNC."""


def usable_cores() -> int:
    """Returns the cores that this process may use; all if the system does not tell.

    A group's quota counts: threads beyond it stand still in the middle of a step.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    for folder in _group_folders("cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = (_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal():
            # The last core may be one in part.
            cores = min(cores, max(1, -(-int(quota) // max(1, int(period)))))
    return cores


def memory_limit() -> int:
    """Returns the bytes that this process may use: the machine's memory, or its groups' limit.

    Raises ``ConfigError`` if the system tells neither.
    """
    limit = _memory_bytes()
    for folder in _group_folders("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _text(folder / name)
            if text.isdecimal():
                limit = min(limit, int(text))
    return limit


def _text(file: Path) -> str:
    """Returns what a small file says, and nothing if it is not there."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _group_folders(controller: str) -> Iterator[Path]:
    """Yields the folders of this process's control groups, of either version, innermost first.

    A container may see its own group as the root, whatever ``/proc`` names; so the root counts.
    """
    yield from (_CGROUP, _CGROUP / controller)
    for line in _text(_PROC / "self/cgroup").splitlines():
        _, controllers, inner = line.split(":", 2)
        # A group of the second version names no controllers: it has all of them.
        if controllers and controller not in controllers.split(","):
            continue
        base = _CGROUP / controller if controllers else _CGROUP
        parts = Path(inner.strip("/")).parts
        if ".." not in parts:
            yield from (base.joinpath(*parts[:depth]) for depth in range(len(parts), 0, -1))


def _memory_bytes() -> int:
    if "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    told = _sysctl("hw.memsize")
    if told is None:
        raise ConfigError("this system does not tell how much memory it has")
    return int.from_bytes(told, sys.byteorder)


def resident_bytes() -> int:
    """Returns the resident bytes of this process; the most so far if the system tells only that."""
    try:
        pages = (_PROC / "self/statm").read_text().split()[1]
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def release_pages(files: Sequence[Path]) -> None:
    """Release all pages of mapped files; reading them loads them again.

    Does nothing if the system does not tell where files are mapped: it then releases pages itself
    when memory is short.
    """
    maps = _PROC / "self/maps"
    if not maps.exists():
        return
    names = {str(file.resolve()) for file in files}
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in maps.read_text().splitlines():
        span, _, name = line.partition(" ")
        if name.partition("/")[2] and f"/{name.partition('/')[2]}" in names:
            start, end = (int(text, 16) for text in span.split("-"))
            advise(start, end - start, _DONT_NEED)


def return_freed_memory() -> None:
    """Have freed memory returned to the system early. Call it before there are threads.

    By itself glibc takes large blocks out of a heap once one as large was freed, and has a heap for
    each thread. A heap never shrinks below what is in use there, so a few large requests would
    leave the process large. Other C libraries have no such options, and nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _MALLOC_OPTIONS:
            mallopt(option, value)


@cache
def processor() -> str:
    """Returns the processor's model and features."""
    # On ARM, Linux tells the model as two numbers, and kinds of cores may differ.
    wanted = r"^(?:model name|flags|Features|CPU implementer|CPU part)\s*:.*$"
    found = dict.fromkeys(re.findall(wanted, _cpuinfo(), re.MULTILINE))
    if found:
        return "|".join(found)
    told = _sysctl("machdep.cpu.brand_string")
    if told is not None:
        return "|".join([told.rstrip(b"\0").decode(), *processor_features()])
    return platform.processor() or platform.machine()


def processor_features() -> Sequence[str]:
    """Returns the processor's features by Linux's names; without /proc, those of ``_FEATURES``."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _cpuinfo(), re.MULTILINE)
    if found:
        return found[1].split()
    return [feature for feature, name in _FEATURES.items() if any(_sysctl(name) or b"")]


def reserve_space(descriptor: int, size_bytes: int) -> None:
    """Give an empty file a size, and disk for all of it. Raises ``OSError`` if the disk is full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size_bytes)
        return
    at = 0
    while at < size_bytes:
        at += os.pwrite(descriptor, bytes(min(_ZERO_BYTES, size_bytes - at)), at)


def sync_file(descriptor: int) -> None:
    """Bring what was written to a file to the disk. Raises ``OSError``."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        try:
            # On macOS, fsync leaves the bytes in the cache of the drive.
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
            os.fsync(descriptor)
    elif hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)


def death_options(sending_s: float | None = None) -> Sequence[tuple[int, int, int]]:
    """Returns the options of a TCP socket that end its connection if the peer has vanished.

    That takes a minute on idle connections. While data is sent it takes ``sending_s``, also if the
    peer is there but takes nothing; with None there is no limit then. Each option is a level, a
    name and a value.
    """
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    named = list(_KEEP_ALIVE)
    if sending_s is not None:
        named.append(("TCP_USER_TIMEOUT", min(int(sending_s * 1000), _MOST_MS)))
    for name, value in named:
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    if sending_s is not None and sys.platform == "darwin":
        options.append((socket.IPPROTO_TCP, _RETRANSMIT_DROP, int(sending_s)))
    return options


def _cpuinfo() -> str:
    """Returns what Linux tells about the processor; nothing elsewhere."""
    path = _PROC / "cpuinfo"
    return path.read_text() if path.is_file() else ""


def _sysctl(name: str) -> bytes | None:
    """Returns a value that the kernel of macOS has by this name; None without it, or elsewhere."""
    call = getattr(ctypes.CDLL(None), "sysctlbyname", None)
    if call is None:
        return None
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    call.argtypes = (ctypes.c_char_p, pointer, ctypes.POINTER(size), pointer, size)
    value, length = ctypes.create_string_buffer(_SYSCTL_BYTES), size(_SYSCTL_BYTES)
    if call(name.encode(), value, ctypes.byref(length), None, 0):
        return None
    return value.raw[: length.value]
