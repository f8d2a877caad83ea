"""One connection: its requests in order, an answer to each, and a deadline for every wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.types import ASGIApp

from afterword.core.errors import ApiError, RequestTimedOut, UnreadableRequest
from afterword.http.exchange import REFUSED
from afterword.http.server.body import ChunkedBody, FixedBody
from afterword.http.server.head import MOST_HEAD_BYTES, HeadReader, RequestHead
from afterword.http.server.presence import ClientPresence
from afterword.http.server.register import Register
from afterword.http.server.transaction import Transaction

_MOST_HELD_BYTES = 65_536
"""Of requests that wait for an answer before theirs."""
_LEAST_BYTES_PER_S = 65_536
"""A body may take longer than the timeout if it arrives at this rate."""
_LINGER_S = 2.0
"""A client may still be sending when it is refused. It reads the answer if nothing resets it."""
_MOMENT_S = 0.01
"""In which the loop polls all sockets at least once."""


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that a client has: to send a request, to take some of an answer, between requests.

    75 s between requests is longer than the minute after which proxies and SDKs close idle
    connections themselves. ``check_s`` is the time between two looks at a client whose leaving
    cannot be read.
    """

    read_s: float = 30.0
    write_s: float = 120.0
    idle_s: float = 75.0
    check_s: float = 0.5


class ClientConnection(asyncio.Protocol):
    """A client's connection.

    ``is_made`` after its TLS handshake; ``when_lost`` is called at its end. At most one transaction
    runs. What arrives behind its request waits, 64 KiB at most. A client that has ended its side of
    the connection gets its answers all the same.
    """

    def __init__(self, app: ASGIApp, timeouts: Timeouts, register: Register) -> None:
        self.is_made = False
        self.when_lost: Callable[[], None] = _nothing
        self._app = app
        self._timeouts = timeouts
        self._register = register
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._overdue = False
        self._deadline_s: float | None = None
        self._head = HeadReader()
        self._body: FixedBody | ChunkedBody = FixedBody(0)
        self._transaction: Transaction | None = None
        self._held = b""
        self._reading = True
        self._advancing = False
        self._ended = False
        self._refused = False
        self._closing = False
        self._left_s: float | None = None
        self._crowded = False
        self._unsent_bytes: int | None = None
        self._stalled_s = 0.0

    # What the event loop calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        self.is_made = True
        self._transport = transport
        self._tls = transport.get_extra_info("sslcontext") is not None
        connected = transport.get_extra_info("socket")
        self._presence = ClientPresence(connected, self._timeouts.check_s)
        self._facts: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "scheme": "https" if self._tls else "http",
            "client": _address(transport.get_extra_info("peername")),
            "server": _address(transport.get_extra_info("sockname")),
            "root_path": "",
        }
        self._register.opened(self)
        if self._register.closing:
            self._close(at_once=True)
        else:
            self._wait(self._timeouts.read_s)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the loop's
        """End what runs."""
        self._closing = True
        self._held = b""
        if self._timer is not None:
            self._timer.cancel()
        if self._transaction is not None:
            self._transaction.leave()
        self._register.lost(self)
        self.when_lost()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._closing or self._refused:
            return
        self._held = self._held + data if self._held else data
        if not self._advancing:
            self._advance()

    def eof_received(self) -> bool:
        """Returns whether the connection stays: TLS has no half that could be open."""
        if self._tls or self._closing:
            return False
        self._ended = True
        if not self._held:
            self._take_end()
        self._watch()
        return True

    def pause_writing(self) -> None:
        """The client takes less than is sent."""
        self._crowded = True
        if self._transaction is not None:
            self._transaction.pause()
        self._watch()

    def resume_writing(self) -> None:
        """The client has taken most of what was sent."""
        self._crowded = False
        if self._transaction is not None:
            self._transaction.resume()

    # What a transaction calls.

    def want_more(self) -> None:
        """Read on when the app has taken what was there of the body."""
        if not self._reading:
            self._resume_reading()

    def answered(self, *, whole: bool) -> None:
        """Wait for the next request, or end the connection."""
        transaction = self._transaction
        if transaction is None or self._closing:
            return
        self._register.changed()
        if not whole:
            self._close(at_once=True)
            return
        if transaction.closing or (self._ended and not self._held):
            nothing_comes = self._body.complete and not self._held and not self._refused
            self._close(at_once=nothing_comes)
            return
        self._transaction = None
        self._head = HeadReader()
        self._presence.renew()
        self._wait(self._timeouts.idle_s)
        self._resume_reading()

    # What the server calls.

    def is_idle(self) -> bool:
        """Returns whether no answer is in progress. A request may still be arriving."""
        return self._transaction is None

    def finish(self) -> None:
        """Close the connection, or let it end with its answer."""
        if self._transaction is not None:
            self._transaction.closing = True
        elif not self._closing:
            self._close(at_once=True)

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    # Requests.

    def _advance(self) -> None:
        """Read what is held, as far as it may be read now."""
        self._advancing = False
        try:
            while self._held and not self._closing and self._step():
                pass
        except ApiError as error:
            if self.is_idle():
                self._refuse(error)
            else:
                self._fail(error)
        if self._ended and not self._held:
            self._take_end()
        if self._transaction is not None:
            self._limit_reading(self._transaction)

    def _take_end(self) -> None:
        """The client sends nothing more, and all that it has sent is read."""
        if self._closing or self._refused:
            return
        if not self.is_idle():
            if not self._body.complete:
                self._fail(UnreadableRequest("The request ended before its body did."))
        elif self._head.begun:
            self._refuse(UnreadableRequest("The request ended before its headers did."))
        else:
            self._close(at_once=True)

    def _step(self) -> bool:
        """Read one part. Returns whether the next one may be read now."""
        transaction = self._transaction
        if transaction is None:
            self._feed_head()
            return True
        if self._body.complete or transaction.is_full:
            return False
        parts, self._held = self._body.feed(self._held)
        transaction.take(parts, last=self._body.complete)
        if self._deadline_s is not None:
            self._deadline_s += sum(map(len, parts)) / _LEAST_BYTES_PER_S
        if self._body.complete:
            self._deadline_s = None
        elif self._held:
            # Others come first.
            self._advancing = True
            self._loop.call_soon(self._advance)
            return False
        return True

    def _feed_head(self) -> None:
        begun = self._head.begun
        head, self._held = self._head.feed(self._held)
        if self._head.begun and not begun:
            # From its first byte on, a request has its own time.
            self._wait(self._timeouts.read_s)
        if head is not None:
            self._begin(head)

    def _begin(self, head: RequestHead) -> None:
        if head.length_bytes is None:
            self._body = ChunkedBody(MOST_HEAD_BYTES - head.size_bytes)
        else:
            self._body = FixedBody(head.length_bytes)
        scope = {
            **self._facts,
            "http_version": head.version,
            "method": head.method,
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query,
            "headers": head.headers,
        }
        transaction = Transaction(head, self, self._transport.write)
        if self._body.complete:
            self._deadline_s = None
            transaction.take([], last=True)
        self._run(transaction, scope)

    def _refuse(self, error: ApiError) -> None:
        """Have the app answer a request that cannot be read."""
        head = RequestHead(
            method=self._head.method, path="", raw_path=b"", query=b"", version="1.1", headers=[],
            length_bytes=0, keep_alive=False, expects_continue=False, size_bytes=0,
        )  # fmt: skip
        self._stop_reading()
        transaction = Transaction(head, self, self._transport.write)
        transaction.take([], last=True)
        scope = {
            **self._facts,
            "http_version": "1.1",
            "method": head.method,
            "path": "",
            "raw_path": b"",
            "query_string": b"",
            "headers": [],
            REFUSED: error,
        }
        self._run(transaction, scope)

    def _run(self, transaction: Transaction, scope: dict[str, Any]) -> None:
        self._transaction = transaction
        if self._crowded:
            transaction.pause()
        if self._register.closing:
            transaction.closing = True
        self._register.run(transaction.run(self._app, scope))

    def _fail(self, error: ApiError) -> None:
        """Tell the app that the rest of its request will not come."""
        self._stop_reading()
        if self._transaction is not None:
            self._transaction.fail(error)

    def _stop_reading(self) -> None:
        """Drop what comes, because nobody knows any more what it is."""
        self._refused = True
        self._deadline_s = None
        self._held = b""
        self._resume_reading()

    def _limit_reading(self, transaction: Transaction) -> None:
        waiting = not self._body.complete and (transaction.is_full or self._advancing)
        crowded = waiting or len(self._held) > _MOST_HELD_BYTES
        if not self._reading and not crowded:
            # What was read may have no content, so the app will not ask for more.
            self._resume_reading()
        elif self._reading and crowded:
            self._reading = False
            if not self._ended:
                self._transport.pause_reading()
            if self._deadline_s is not None:
                # While the app lets it wait, the client's time stands still.
                self._left_s = self._deadline_s - self._loop.time()
                self._deadline_s = None
            self._watch()

    def _resume_reading(self) -> None:
        if not self._reading and not self._ended and not self._transport.is_closing():
            self._transport.resume_reading()
        self._reading = True
        if self._left_s is not None:
            if not self._refused and not self._body.complete:
                self._wait(self._left_s)
            self._left_s = None
        if self._held and not self._advancing:
            self._advancing = True
            self._loop.call_soon(self._advance)

    # Time.

    def _wait(self, seconds: float) -> None:
        """Give the client this long for what it has to do next."""
        self._deadline_s = self._loop.time() + seconds
        self._overdue = False
        self._look_at(self._deadline_s)

    def _look_at(self, moment_s: float) -> None:
        if self._timer is not None:
            if not self._timer.cancelled() and self._timer.when() <= moment_s:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(moment_s, self._look)

    def _watch(self) -> None:
        """Look soon whether the client takes its answer, and whether it is still there."""
        self._look_at(self._loop.time() + min(self._timeouts.check_s, self._timeouts.write_s))

    def _look(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        stalled = self._is_stalled(now_s)
        late = self._deadline_s is not None and now_s >= self._deadline_s
        if (stalled or late) and not self._overdue:
            # If the process stood still, the loop first reads and writes what it can.
            self._overdue = True
            self._look_at(now_s + _MOMENT_S)
            return
        self._overdue = False
        if stalled or self._is_gone(now_s):
            self._transport.abort()
            return
        if late:
            self._deadline_s = None
            self._run_out()
        if self._deadline_s is not None:
            self._look_at(self._deadline_s)
        if self._unsent_bytes is not None or self._is_deaf():
            self._watch()

    def _run_out(self) -> None:
        """The client's time is over."""
        timed_out = RequestTimedOut("The request did not arrive in time.")
        if self._closing and self._unsent_bytes is not None:
            self._wait(_LINGER_S)
        elif self._closing:
            self._transport.abort()
        elif not self.is_idle():
            self._fail(timed_out)
        elif self._head.begun:
            self._refuse(timed_out)
        else:
            self._close(at_once=True)

    def _is_stalled(self, now_s: float) -> bool:
        """Returns whether the client has taken nothing of its answer for too long."""
        unsent_bytes = self._transport.get_write_buffer_size()
        if not unsent_bytes:
            self._unsent_bytes = None
        elif self._unsent_bytes is None or unsent_bytes != self._unsent_bytes:
            self._unsent_bytes = unsent_bytes
            self._stalled_s = now_s + self._timeouts.write_s
        return self._unsent_bytes is not None and now_s >= self._stalled_s

    def _is_deaf(self) -> bool:
        """Returns whether reading would not show that the client has gone."""
        return not self._closing and not self.is_idle() and (self._ended or not self._reading)

    def _is_gone(self, now_s: float) -> bool:
        """Returns whether nobody waits for the answer any more."""
        if self._transaction is None or not self._is_deaf():
            return False
        behind = not self._ended and self._body.complete
        return self._presence.is_lost(now_s, self._transaction.ask, behind=behind)

    # The end.

    def _close(self, *, at_once: bool) -> None:
        """Close the connection when all is sent, and a little later if the client still sends."""
        self._closing = True
        self._held = b""
        if at_once or self._ended:
            self._transport.close()
        else:
            if self._transport.can_write_eof():
                self._transport.write_eof()
            self._resume_reading()
        self._wait(_LINGER_S)
        self._watch()


def _address(name: Any) -> tuple[str, int] | None:  # noqa: ANN401 - depends on the family
    """Returns host and port; None for a socket of UNIX."""
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None


def _nothing() -> None:
    return
