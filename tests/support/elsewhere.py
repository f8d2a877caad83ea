"""The ``afterword`` command on a system that has nothing that macOS lacks; arguments as usual."""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import signal
import socket
import time
from pathlib import Path

# What typeshed knows for Linux and not for macOS, but for constants of protocols, and for epoll,
# which Python's own event loop uses.
LINUX = {
    fcntl: "F_ADD_SEALS F_GETPIPE_SZ F_GETSIG F_GET_SEALS F_NOTIFY F_SETPIPE_SZ F_SETSIG",
    mmap: """
        MADV_DODUMP MADV_DOFORK MADV_DONTDUMP MADV_DONTFORK MADV_HUGEPAGE MADV_HWPOISON
        MADV_MERGEABLE MADV_NOHUGEPAGE MADV_REMOVE MADV_UNMERGEABLE MAP_DENYWRITE MAP_EXECUTABLE
        MAP_POPULATE MAP_STACK""",
    os: """
        O_DIRECT O_LARGEFILE O_NOATIME O_PATH O_RSYNC O_TMPFILE P_PIDFD RTLD_DEEPBIND
        copy_file_range eventfd eventfd_read eventfd_write fdatasync getrandom getresgid getresuid
        getxattr listxattr memfd_create pidfd_open pipe2 posix_fadvise posix_fallocate removexattr
        sched_getaffinity sched_getparam sched_getscheduler sched_rr_get_interval
        sched_setaffinity sched_setparam sched_setscheduler setns setresgid setresuid setxattr
        splice timerfd_create unshare""",
    resource: """
        RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_OFILE RLIMIT_RTPRIO RLIMIT_RTTIME RLIMIT_SIGPENDING
        RUSAGE_THREAD prlimit""",
    signal: """
        SIGCLD SIGPOLL SIGPWR SIGRTMAX SIGRTMIN SIGSTKFLT pidfd_send_signal sigtimedwait
        sigwaitinfo""",
    socket: """
        AF_ALG AF_CAN AF_NETLINK AF_PACKET AF_QIPCRTR AF_TIPC AF_VSOCK IPPROTO_MPTCP
        IPPROTO_UDPLITE MSG_CMSG_CLOEXEC MSG_CONFIRM MSG_ERRQUEUE MSG_FASTOPEN MSG_MORE
        SOCK_CLOEXEC SOCK_NONBLOCK SO_BINDTODEVICE SO_DOMAIN SO_INCOMING_CPU SO_MARK SO_PASSCRED
        SO_PASSSEC SO_PEERCRED SO_PEERSEC SO_PRIORITY SO_PROTOCOL TCP_CONGESTION TCP_CORK
        TCP_DEFER_ACCEPT TCP_INFO TCP_KEEPIDLE TCP_LINGER2 TCP_QUICKACK TCP_SYNCNT
        TCP_USER_TIMEOUT TCP_WINDOW_CLAMP""",
    time: "CLOCK_BOOTTIME CLOCK_TAI pthread_getcpuclockid",
}


def leave_linux() -> None:
    """Take away from this process what only Linux has. Call it before the package is imported."""
    for module, names in LINUX.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    from afterword.core import machine  # noqa: PLC0415 - after that

    machine._PROC = machine._CGROUP = Path("/not/linux")


if __name__ == "__main__":
    leave_linux()
    from afterword.cli import main

    main()
