"""A connection to an upstream: HTTP/1.1 over a socket, without a task for each token.

Why not a general client: see docs/decisions/0031.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import httptools
import msgspec

from afterword.gateway.failures import StreamBroke
from afterword.gateway.transport.rounds import ReadingRounds

_MOST_HEAD_BYTES = 64 * 1024
"""Interim answers, head and trailers together; also the framing between two parts of a body."""
_MANY_BYTES = 64 * 1024
"""Of a read. The loop would go on reading up to 32 times before anything else runs."""
_ENDLESS_HEAD = "its headers are too long"
_BROKEN_OFF = "the connection broke off"


class Head(msgspec.Struct, frozen=True):
    """Status and headers of an answer, names in lower case. Repeated headers are joined."""

    status: int
    headers: Mapping[str, str]


class Receiver(Protocol):
    """Receives an answer. All methods are called on the event loop as bytes arrive."""

    def head(self, head: Head) -> None:
        """Receive status and headers."""

    def body(self, received: bytes) -> None:
        """Receive a part of the body."""

    def end(self, error: StreamBroke | None) -> None:
        """The answer is complete (None), or it broke off. Called once, as the last call."""


class Connection(asyncio.Protocol):
    """One socket with one exchange at a time. ``reusable`` if all answers were complete.

    Interim answers (100, 102, 103) are skipped. Bytes that no request asked for end the
    connection: they would be read as the answer to the next request. ``rounds`` may read it.
    """

    def __init__(self, rounds: ReadingRounds | None = None) -> None:
        self.reusable = True
        self.answered = False
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._framing_bytes = 0
        self._interim = False
        self._until_close = False
        self._parts: list[bytes] = []
        self._rounds = rounds
        self._number: int | None = None
        self._held = False

    def send(self, request: bytes, receiver: Receiver) -> None:
        """Send a whole request; ``receiver`` gets its answer."""
        self._receiver = receiver
        self.answered = False
        self._head_bytes = self._framing_bytes = 0
        if self._transport is None or self._transport.is_closing():
            self._finish(StreamBroke("the connection was closed"))
            return
        self._transport.write(request)

    def join_rounds(self) -> None:
        """Be read together with others, to the end of the answer. Nothing changes with TLS."""
        transport, rounds = self._transport, self._rounds
        if rounds is None or transport is None or self._number is not None:
            return
        plain = transport.get_extra_info("sslcontext") is None
        if plain and self._receiver is not None and not transport.is_closing():
            transport.pause_reading()
            self._number = transport.get_extra_info("socket").fileno()
            rounds.join(self._number, self)

    def round_ended(self, *, broke: bool) -> None:
        """See ``RoundStream``."""
        if broke:
            self._break(StreamBroke(_BROKEN_OFF))
        else:
            # The loop sees the end, too.
            self._leave_rounds()

    def hold(self) -> None:
        """Read nothing more until ``release``; one part of the body may still come."""
        transport = self._transport
        if self._held or self._receiver is None or transport is None or transport.is_closing():
            return
        self._held = True
        if self._number is None:
            transport.pause_reading()
        elif self._rounds is not None:
            self._rounds.leave(self._number)

    def release(self) -> None:
        """Read on after ``hold``."""
        if not self._held or self._transport is None:
            return
        self._held = False
        if self._number is not None and self._rounds is not None:
            self._rounds.join(self._number, self)
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def _leave_rounds(self) -> None:
        """Be read by the loop again, also after ``hold``."""
        if (self._number is None and not self._held) or self._transport is None:
            return
        if self._number is not None and not self._held and self._rounds is not None:
            self._rounds.leave(self._number)
        self._number, self._held = None, False
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once, so that the upstream stops. The receiver gets no further call."""
        self._leave_rounds()
        self._receiver = None
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = transport  # type: ignore[assignment] # a stream's

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if self._receiver is None:
            self.abort()
            return
        self.answered = True
        # The parser collects a header until its end, so its own callbacks come too late.
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self._break(error.__context__)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break(error)
        else:
            self._pass_on()
            if self._framing_bytes > _MOST_HEAD_BYTES and self._receiver is not None:
                self._break(StreamBroke(_ENDLESS_HEAD))
        if len(data) >= _MANY_BYTES:
            self._let_others_run()

    def _let_others_run(self) -> None:
        """Read on in the next turn of the loop."""
        transport = self._read_by_loop
        if transport is not None:
            transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        transport = self._read_by_loop
        if transport is not None:
            transport.resume_reading()

    @property
    def _read_by_loop(self) -> asyncio.Transport | None:
        """The open transport, unless the connection is held or rounds read it."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._held or self._number is not None:
            return None
        return transport

    def _break(self, error: BaseException | None) -> None:
        """End the exchange and the connection."""
        self._pass_on()
        if not isinstance(error, StreamBroke):
            error = StreamBroke("it sent something that is not HTTP")
        self._finish(error)
        self.abort()

    def eof_received(self) -> None:
        """Called by the loop; the transport closes itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self.reusable = False
        whole = self._until_close and exc is None
        self._finish(None if whole else StreamBroke(_BROKEN_OFF))

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._headers = {}
        if self._receiver is None:
            # A second answer in the packet of the first one: nothing asked for it.
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > _MOST_HEAD_BYTES:
            raise StreamBroke(_ENDLESS_HEAD)
        # The parser leaves the blanks behind a value.
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t")
        before = self._headers.get(key)
        self._headers[key] = text if before is None else f"{before}, {text}"

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        status, headers = self._parser.get_status_code(), self._headers
        self._interim = 100 <= status < 200
        if self._interim:
            return
        coding = headers.get("transfer-encoding", "").lower()
        if coding not in {"", "chunked"}:
            raise StreamBroke("it sent its answer in a transfer coding that was not asked for")
        if headers.get("content-encoding", "").lower() not in {"", "identity"}:
            raise StreamBroke("it compressed its answer, which was not asked for")
        self._until_close = not coding and "content-length" not in headers
        if self._receiver is not None:
            self._receiver.head(Head(status, headers))

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._framing_bytes = 0
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._interim:
            return
        self._pass_on()
        self.reusable = self.reusable and self._parser.should_keep_alive()
        self._finish(None)

    def _pass_on(self) -> None:
        """Give what has arrived of the body, in one part: an event then costs one write."""
        parts = self._parts
        if parts:
            self._parts = []
            if self._receiver is not None:
                self._receiver.body(parts[0] if len(parts) == 1 else b"".join(parts))

    def _finish(self, error: StreamBroke | None) -> None:
        self._leave_rounds()
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.end(error)
