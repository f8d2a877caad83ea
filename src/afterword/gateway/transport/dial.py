"""Opens a socket to a host that may have several addresses, some of them silent.

RFC 8305 ("Happy Eyeballs"), without its cache. Of our own, because uvloop's ``create_connection``
tries one address after another and waits for each to the end.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any, TypeAlias

from afterword.core.machine import death_options

_Resolved: TypeAlias = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]

_STAGGER_S = 0.25
"""An address that has not answered after this time gets a rival; RFC 8305, 5."""


async def dial(host: str, port: int) -> socket.socket:
    """Returns a connected socket, of the address that answered first. The caller limits the time.

    Raises ``OSError``: why the name is unknown, or why the last address failed.
    """
    loop = asyncio.get_running_loop()
    # If it is told the type, uvloop drops the scope (fe80::1%eth0).
    kind = 0 if "%" in host else socket.SOCK_STREAM
    found = await loop.getaddrinfo(host, port, type=kind, proto=socket.IPPROTO_TCP)
    waiting = _in_turn(found)
    dialled: list[asyncio.Task[socket.socket]] = []
    pending: set[asyncio.Task[socket.socket]] = set()
    winner: asyncio.Task[socket.socket] | None = None
    try:
        while winner is None:
            if waiting:
                dialled.append(loop.create_task(_connected(waiting.pop(0))))
                pending.add(dialled[-1])
            done, pending = await asyncio.wait(
                pending,
                timeout=_STAGGER_S if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            winner = next((task for task in done if task.exception() is None), None)
            if winner is None and not waiting and not pending:
                return dialled[-1].result()
        return winner.result()
    finally:
        for task in dialled:
            # One that has connected meanwhile is not cancelled.
            if task is not winner and not task.cancel() and task.exception() is None:
                task.result().close()


def _in_turn(found: Sequence[_Resolved]) -> list[_Resolved]:
    """Returns the addresses in the system's order, but with IPv6 and IPv4 in turn."""
    first = [one for one in found if one[0] == found[0][0]]
    others = [one for one in found if one[0] != found[0][0]]
    return [one for one in chain.from_iterable(zip_longest(first, others)) if one is not None]


async def _connected(resolved: _Resolved) -> socket.socket:
    family, kind, protocol, _, address = resolved
    opened = socket.socket(family, kind, protocol)
    try:
        opened.settimeout(0)
        # Small packets are sent at once. Not every loop does this to a socket that it did not make.
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await _connect(opened, address)
        # No limit while data is sent: a busy server may leave a long prompt unread for a while.
        for option in death_options():
            opened.setsockopt(*option)
    except BaseException:
        opened.close()
        raise
    return opened


async def _connect(opened: socket.socket, address: tuple[Any, ...]) -> None:
    """``sock_connect``; but uvloop's resolves the address again, on a thread, without its scope."""
    number = opened.connect_ex(address)
    if number == errno.EINPROGRESS:
        loop, writable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_writer(opened, writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(opened)
        number = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))
