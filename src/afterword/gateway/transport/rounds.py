"""Reads the streams of many requests together, because to wake for a token costs more than it.

See docs/decisions/0086.
"""

from __future__ import annotations

import asyncio
import os
import selectors
from typing import Protocol

_MOST_BYTES = 1 << 16
_RARE = 4
"""Rounds follow the clock if two packets come within this part of a round."""
_LEAST_PACKETS = 2
"""Of a round. Where fewer come, each is read at once."""


class RoundStream(Protocol):
    """A socket that is read in rounds."""

    def data_received(self, data: bytes) -> None:
        """Take in what was read."""

    def round_ended(self, *, broke: bool) -> None:
        """Leave, because nothing more can be read: the socket broke, or its end has come."""


class ReadingRounds:
    """Reads sockets that have joined: at once if packets are rare, and otherwise every ``round_s``.

    It blocks nothing: what else the loop has to do is done meanwhile. Invariant: once a socket has
    joined, and until ``close``, either the loop watches all of them or the timer runs.
    """

    def __init__(self, round_s: float, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._round_s = round_s
        self._loop = loop
        self._selector = selectors.DefaultSelector()
        self._streams: dict[int, RoundStream] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._watches = False
        self._found_s = 0.0

    def join(self, number: int, stream: RoundStream) -> None:
        """Read a socket, by its number, until it leaves."""
        self._streams[number] = stream
        self._selector.register(number, selectors.EVENT_READ)
        if self._timer is None and not self._watches:
            self._watch()

    def leave(self, number: int) -> None:
        """Read a socket no more."""
        if self._streams.pop(number, None) is not None:
            self._selector.unregister(number)

    def close(self) -> None:
        """Read nothing more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._unwatch()
        self._streams.clear()
        self._selector.close()

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def _watch(self) -> None:
        self._watches = True
        self._running().add_reader(self._selector.fileno(), self._packet)

    def _unwatch(self) -> None:
        if self._watches:
            self._watches = False
            self._running().remove_reader(self._selector.fileno())

    def _packet(self) -> None:
        """Packets have come while the loop watched."""
        found = self._found()
        if found:
            now_s = self._running().time()
            if now_s - self._found_s < self._round_s / _RARE:
                self._unwatch()
                self._set_timer(self._round_s)
            self._found_s = now_s
        self._read(found)

    def _round(self) -> None:
        """A round is due."""
        self._timer = None
        found = self._found()
        if len(found) < _LEAST_PACKETS:
            self._watch()
        else:
            self._set_timer(self._round_s)
        if self._read(found) and self._timer is not None:
            # A stream without a pause must not wait for the clock.
            self._timer.cancel()
            self._set_timer(0)

    def _set_timer(self, seconds: float) -> None:
        self._timer = self._running().call_later(seconds, self._round)

    def _found(self) -> list[int]:
        """Returns the sockets that have something to read."""
        return [key.fd for key, _ in self._selector.select(0)]

    def _read(self, found: list[int]) -> bool:
        """Read once from each socket. Returns whether one of them may have more."""
        more = False
        for number in found:
            stream = self._streams.get(number)
            if stream is None:  # what was read before has made it leave
                continue
            try:
                data = os.read(number, _MOST_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                stream.round_ended(broke=True)
                continue
            if data:
                stream.data_received(data)
                more = more or len(data) == _MOST_BYTES
            else:
                stream.round_ended(broke=False)
        return more
