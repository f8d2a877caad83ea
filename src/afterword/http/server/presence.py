"""Whether a client that waits for its answer is still there, where reading does not show it."""

from __future__ import annotations

import socket
from collections.abc import Callable

_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None)
_CLOSED = 7
_CLOSED_BY_PEER = 8
_FAMILIES = {socket.AF_INET, socket.AF_INET6}


class Presence:
    """Looks at the state of a client's TCP connection, every ``gap_s`` while it is asked.

    A client that has gone and one that has only ended its side look the same until something is
    sent to them. Systems without TCP_INFO, and sockets of UNIX, only say it at the next write.
    """

    def __init__(self, connected: socket.socket, gap_s: float) -> None:
        self._socket = connected
        self._is_readable = _TCP_INFO is not None and connected.family in _FAMILIES
        self._gap_s = gap_s
        self.renew()

    def renew(self) -> None:
        """Begin anew, for the next request."""
        self._asks = 0
        self._next_ask_s = 0.0

    def is_lost(self, now_s: float, ask: Callable[[], None], *, behind: bool) -> bool:
        """Returns whether the client's machine has said that nobody reads the answer.

        ``ask`` sends something without a meaning. ``behind``: bytes that nobody reads may stand
        before the client's end, so it is asked again and again, ever more rarely.
        """
        if not self._is_readable or _TCP_INFO is None:
            return False
        state = self._socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0]
        due = behind and now_s >= self._next_ask_s
        if due or (state == _CLOSED_BY_PEER and not self._asks):
            ask()
            self._next_ask_s = now_s + self._gap_s * 2**self._asks
            self._asks += 1
        return bool(state == _CLOSED)
