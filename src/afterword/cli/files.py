"""How many files the process may have open, and how many connections that allows."""

from __future__ import annotations

import resource

KEPT_FILES = 128
"""For the ledger, models, logs and libraries, whatever connections take."""


def allow_connections(most: int, *, files_each: int) -> int:
    """Raise the soft limit on open files as far as ``most`` connections need it.

    Returns how many connections fit into the limit, ``most`` at most and 1 at least.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    wanted = KEPT_FILES + most * files_each
    if soft == endless or soft >= wanted:
        return most
    granted = wanted if hard == endless else min(hard, wanted)
    if granted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    return max(1, min(most, (granted - KEPT_FILES) // files_each))
