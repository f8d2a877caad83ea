"""How many files the process may have open, and how many connections that allows."""

from __future__ import annotations

import resource
from collections.abc import Iterable

from afterword.gateway.address import is_remote

KEPT_FILES = 128
"""For the ledger, models, logs and libraries, whatever connections take."""


def files_each(sources: Iterable[str]) -> int:
    """Returns how many files one connection takes while these models are served."""
    # A request to another server's model has a connection there, too.
    return 2 if any(map(is_remote, sources)) else 1


def files_needed(connections: int, each: int) -> int:
    """Returns how many files the process opens while it has so many connections."""
    return KEPT_FILES + connections * each


def allow_connections(most: int, *, each: int) -> int:
    """Raise the soft limit on open files as far as ``most`` connections need it.

    Returns how many connections fit into the limit, ``most`` at most and 1 at least.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    wanted = files_needed(most, each)
    if soft == endless or soft >= wanted:
        return most
    granted = wanted if hard == endless else min(hard, wanted)
    if granted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    return max(1, min(most, (granted - KEPT_FILES) // each))
