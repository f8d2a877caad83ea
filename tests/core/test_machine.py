"""Calls that only Linux has, and what is done without them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from afterword.core import machine
from afterword.core.errors import ConfigError
from afterword.core.machine import (
    death_options,
    memory_limit,
    processor_features,
    release_pages,
    reserve_space,
    resident_bytes,
    return_freed_memory,
    sync_file,
    usable_cores,
)

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="compares with what Linux tells")
processor = machine.processor.__wrapped__


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without what only Linux has."""
    monkeypatch.setattr(machine, "_PROC", tmp_path / "no proc")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "no groups")
    for name in ("sched_getaffinity", "posix_fallocate", "fdatasync"):
        monkeypatch.delattr(os, name, raising=False)
    for name in ("TCP_KEEPIDLE", "TCP_USER_TIMEOUT"):
        monkeypatch.delattr(socket, name, raising=False)


class MacLibrary:
    """The C library of macOS, with the values that its kernel tells."""

    def __init__(self, values: Mapping[str, bytes]) -> None:
        size, pointer = ctypes.c_size_t, ctypes.c_void_p
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_char_p, pointer, ctypes.POINTER(size), pointer, size
        )

        def tell(name: bytes, into: int, length: object, *_: object) -> int:
            value = values.get(name.decode())
            if value is None:
                return -1
            assert isinstance(length, ctypes.POINTER(size))
            assert len(value) <= length.contents.value
            ctypes.memmove(into, value, len(value))
            length.contents.value = len(value)
            return 0

        self.sysctlbyname = kind(tell)


@pytest.fixture
def macos(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this system tell what macOS tells: ``macos({name: value})``."""

    def tell(values: Mapping[str, bytes]) -> None:
        library = MacLibrary(values)
        monkeypatch.setattr(ctypes, "CDLL", lambda _: library)

    return tell


# Cores.


def test_cores_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores() == 2


@pytest.mark.parametrize(("told", "cores"), [(64, 64), (None, 1)])
def test_cores_are_those_of_the_machine_elsewhere(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch, told: int | None, cores: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: told)
    assert usable_cores() == cores


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Sets what a file of a control group says, and the groups of this process."""
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")

    def say(groups: str, name: str, text: str) -> None:
        for file, content in (
            (tmp_path / "proc/self/cgroup", groups), (tmp_path / "cgroup" / name, text),
        ):  # fmt: skip
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)

    return say


SERVICE = "0::/system.slice/afterword.service\n"
OF_BOTH = "4:memory:/user/one\n2:cpu,cpuacct:/user/one\n0::/\n"
OUTSIDE = "0::/../../elsewhere\n"
"""What a process sees whose group is not below the root that it was given."""


@linux
@pytest.mark.parametrize(
    ("groups", "name", "text", "cores"),
    [
        ("0::/\n", "cpu.max", "100000 100000", 1),
        ("0::/\n", "cpu.max", "max 100000", 8),
        ("0::/\n", "cpu.max", "250000 100000", 3),
        ("0::/\n", "cpu.max", "1000 100000", 1),
        (OUTSIDE, "cpu.max", "200000 100000", 2),
        (SERVICE, "system.slice/afterword.service/cpu.max", "200000 100000", 2),
        (SERVICE, "system.slice/cpu.max", "150000 100000", 2),
        (SERVICE, "another.slice/cpu.max", "100000 100000", 8),
        (OF_BOTH, "cpu/user/one/cpu.cfs_quota_us", "200000", 2),
        (OF_BOTH, "cpu/user/one/cpu.cfs_quota_us", "-1", 8),
        (OF_BOTH, "cpu/cpu.cfs_quota_us", "100000", 1),
    ],
)
def test_cores_are_those_of_the_quota(
    group: Callable[[str, str, str], None], monkeypatch: pytest.MonkeyPatch,
    groups: str, name: str, text: str, cores: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    group(groups, name, text)
    if name.endswith("quota_us"):
        group(groups, name.replace("quota", "period"), "100000")
    assert usable_cores() == cores


# Memory.


@pytest.mark.parametrize(
    ("groups", "name"),
    [
        (SERVICE, "system.slice/afterword.service/memory.max"),
        (SERVICE, "system.slice/memory.max"),
        (OF_BOTH, "memory/user/memory.limit_in_bytes"),
        (OUTSIDE, "memory.max"),
    ],
)
def test_memory_is_limited_by_the_groups_around(
    group: Callable[[str, str, str], None], groups: str, name: str
) -> None:
    group(groups, name, "max")
    whole = memory_limit()
    group(groups, name, "4096000")
    assert memory_limit() == 4096000 < whole


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_memory_is_limited_by_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    whole = memory_limit()
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    for text, limit in (("4096000\n", 4096000), ("max\n", whole), (f"{2**63 - 4096}\n", whole)):
        file.write_text(text)
        assert memory_limit() == limit


def test_memory_is_that_of_the_machine_elsewhere(elsewhere: None) -> None:
    pages = os.sysconf("SC_PHYS_PAGES")
    assert memory_limit() == pages * os.sysconf("SC_PAGE_SIZE") > 2**28


def test_memory_by_the_kernel_of_macos(
    macos: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf_names", {"SC_PAGE_SIZE": 30})
    macos({"hw.memsize": (24 * 2**30).to_bytes(8, sys.byteorder)})
    assert memory_limit() == 24 * 2**30
    macos({})
    with pytest.raises(ConfigError, match="does not tell how much memory it has"):
        memory_limit()


@linux
def test_resident_memory_elsewhere_is_the_most_so_far(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    # The kernel counts the pages of a thread in lots, so that two readings may differ.
    assert abs(resident_bytes() - int(found[1]) * 1024) < 16 * MIB


def test_resident_memory_by_macos_is_in_bytes(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        ru_maxrss = 123_456

    monkeypatch.setattr(resource, "getrusage", lambda _: Usage)
    assert resident_bytes() == 123_456 * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert resident_bytes() == 123_456


def test_pages_are_released_only_where_maps_are_told(
    elsewhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * MIB)
    data = np.memmap(path, np.uint8, "r")
    monkeypatch.delattr(ctypes, "CDLL")
    release_pages([path])
    assert bytes(data) == b"x" * MIB


LARGE_BLOCKS = """
import ctypes
from afterword.core.machine import return_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost",
    )]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
return_freed_memory()
before = libc.mallinfo2().hblkhd
libc.free(libc.malloc(20 << 20))
block = libc.malloc(10 << 20)
print(libc.mallinfo2().hblkhd - before)
"""


def test_a_large_block_is_never_a_part_of_a_heap() -> None:
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("this C library does not tell what it holds")
    told = subprocess.run(
        [sys.executable, "-c", LARGE_BLOCKS], check=True, stdout=subprocess.PIPE
    ).stdout
    assert int(told) >= 10 * MIB


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    return_freed_memory()


# The processor.

X86 = "model name\t: Intel X\nflags\t\t: fpu avx2 fma\n\n"
ARM = "Features\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: {}\n\n"


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        (2 * X86, "model name\t: Intel X|flags\t\t: fpu avx2 fma", ["fpu", "avx2", "fma"]),
        (
            2 * ARM.format("0xd0c"),
            "Features\t: fp asimd|CPU implementer\t: 0x41|CPU part\t: 0xd0c",
            ["fp", "asimd"],
        ),
        (
            ARM.format("0xd05") + ARM.format("0xd0a"),
            "Features\t: fp asimd|CPU implementer\t: 0x41|CPU part\t: 0xd05|CPU part\t: 0xd0a",
            ["fp", "asimd"],
        ),
    ],
)
def test_the_processor_as_linux_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str, features: list[str]
) -> None:
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    (tmp_path / "cpuinfo").write_text(text)
    assert processor() == name
    assert processor_features() == features


def test_the_processor_as_macos_tells_it(macos: Callable[..., None]) -> None:
    yes, no = (1).to_bytes(4, sys.byteorder), bytes(4)
    apple = {"hw.optional.neon": yes, "hw.optional.arm.FEAT_DotProd": yes}
    macos(
        {
            "machdep.cpu.brand_string": b"Apple M2\0",
            **apple,
            "hw.optional.arm.FEAT_I8MM": no,
        }
    )
    assert processor() == "Apple M2|asimd|asimddp"
    assert processor_features() == ["asimd", "asimddp"]


@pytest.mark.parametrize(("told", "name"), [("arm", "arm"), ("", "aarch64")])
def test_a_processor_that_the_kernel_does_not_tell(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch, told: str, name: str
) -> None:
    monkeypatch.setattr(platform, "processor", lambda: told)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert processor() == name
    assert processor_features() == []


# The disk.


@pytest.mark.parametrize("size_bytes", [0, 1, MIB, 2 * MIB + 5])
def test_space_is_reserved_elsewhere(elsewhere: None, tmp_path: Path, size_bytes: int) -> None:
    """A disk that is told only the size would be full later, in the middle of a request."""
    with (tmp_path / "x").open("wb") as file:
        reserve_space(file.fileno(), size_bytes)
        stat = os.fstat(file.fileno())
    assert stat.st_size == size_bytes
    assert stat.st_blocks * 512 >= size_bytes
    assert not any((tmp_path / "x").read_bytes())


def test_space_is_reserved_by_writes_that_are_cut_short(
    elsewhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, text, at: whole(fd, text[:70_001], at))
    with (tmp_path / "x").open("wb") as file:
        reserve_space(file.fileno(), 2 * MIB)
    assert (tmp_path / "x").stat().st_size == 2 * MIB


@linux
def test_a_full_disk_reserves_nothing_elsewhere(elsewhere: None) -> None:
    with Path("/dev/full").open("wb") as full, pytest.raises(OSError, match="No space left"):
        reserve_space(full.fileno(), MIB)


def test_a_file_is_synced_elsewhere(
    elsewhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    sync_file(7)
    assert synced == [7]


@pytest.mark.parametrize("refusal", [None, errno.ENOTTY, errno.ENOTSUP, errno.EINVAL, errno.EIO])
def test_macos_syncs_past_the_cache_of_the_drive(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch, refusal: int | None
) -> None:
    """A file system that does not offer this gets the usual sync; an error is an error."""
    asked, synced = [], list[int]()

    def control(descriptor: int, command: int) -> int:
        asked.append((descriptor, command))
        if refusal is not None:
            raise OSError(refusal, os.strerror(refusal))
        return 0

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", synced.append)
    if refusal == errno.EIO:
        with pytest.raises(OSError, match="Input/output"):
            sync_file(7)
    else:
        sync_file(7)
    assert asked == [(7, 51)]
    assert synced == ([] if refusal in {None, errno.EIO} else [7])


# Connections.


@linux
def test_a_connection_ends_when_its_peer_vanishes() -> None:
    with socket.socket() as connection:
        for level, name, value in death_options(60):
            connection.setsockopt(level, name, value)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        told = [
            connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        ]
    assert told == [30, 10, 3, 60_000]


@linux
def test_a_year_is_no_time_that_the_system_refuses() -> None:
    """The system counts milliseconds in 32 bits."""
    with socket.socket() as connection:
        for level, name, value in death_options(365 * 86_400):
            connection.setsockopt(level, name, value)


def test_options_of_a_connection_on_macos(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "TCP_KEEPALIVE", 0x10, raising=False)
    monkeypatch.setattr(socket, "TCP_KEEPINTVL", 0x101)
    monkeypatch.setattr(socket, "TCP_KEEPCNT", 0x102)
    monkeypatch.setattr(sys, "platform", "darwin")
    tcp = socket.IPPROTO_TCP
    assert list(death_options(60)) == [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (tcp, 0x10, 30),
        (tcp, 0x101, 10),
        (tcp, 0x102, 3),
        (tcp, 0x80, 60),
    ]


def test_a_connection_gets_the_options_that_there_are(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TCP_KEEPINTVL", "TCP_KEEPCNT"):
        monkeypatch.delattr(socket, name)
    assert list(death_options(60)) == [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
