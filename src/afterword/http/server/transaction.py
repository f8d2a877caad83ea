"""One request and its answer, as ASGI's ``receive`` and ``send``."""

from __future__ import annotations

import asyncio
import http
import logging
import re
import time
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Protocol

from starlette.types import ASGIApp, Message

from afterword.core.errors import ApiError
from afterword.core.faults import in_one_line
from afterword.http.exchange import BODY_WRITER
from afterword.http.server.head import RequestHead

_log = logging.getLogger(__name__)

_MOST_KEPT_BYTES = 65_536
"""Of a body that the app has not read. More waits in the kernel, and then at the client."""
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    for status in http.HTTPStatus
}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_COMMENT = b": \n\n"
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BODILESS = frozenset({204, 304})


class Wire(Protocol):
    """What a transaction needs of its connection."""

    def want_more(self) -> None:
        """The app has taken what was there of the body."""

    def answered(self, *, whole: bool) -> None:
        """The answer is complete, or will never be."""


class Transaction:
    """A request that runs. ``closing``: the connection ends with the answer.

    The answer of an HTTP/1.0 request, or of one that arrives in part, ends the connection.
    """

    def __init__(self, head: RequestHead, wire: Wire, write: Callable[[bytes], None]) -> None:
        self.complete = False
        self.closing = not head.keep_alive
        self._head = head
        self._wire = wire
        self._write = write
        self._parts: list[bytes] = []
        self._kept_bytes = 0
        self._arrived = False
        self._delivered = False
        self._failure: ApiError | None = None
        self._gone = False
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._awaits_continue = head.expects_continue
        self._started = False
        self._chunked = False
        self._event_stream = False
        self._missing_bytes: int | None = None

    @property
    def is_full(self) -> bool:
        """Whether the body waits for the app."""
        return self._kept_bytes > _MOST_KEPT_BYTES

    async def run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        """Run the app. Its errors end here."""
        scope[BODY_WRITER] = self
        try:
            await app(scope, self.receive, self.send)
        except Exception as error:  # noqa: BLE001 - an app's error ends its connection alone
            _log.error("an answer broke: %s", in_one_line(error))
        finally:
            if not self.complete:
                self.complete = True
                self._wire.answered(whole=False)

    def take(self, parts: list[bytes], *, last: bool) -> None:
        """Take parts of the body."""
        # Thousands of tiny chunks would take many times their bytes.
        content = b"".join(parts)
        if content:
            self._parts.append(content)
        self._kept_bytes += len(content)
        self._arrived = last
        if last:
            self._awaits_continue = False
        self._news.set()

    def fail(self, error: ApiError) -> None:
        """Let the app's next ``receive`` raise: the rest of the request will not come."""
        self._failure = error
        self.closing = True
        self._news.set()

    def leave(self) -> None:
        """The client has gone."""
        self._gone = True
        self._news.set()
        self._writable.set()

    def pause(self) -> None:
        """Hold the app's next ``send`` back."""
        self._writable.clear()

    def resume(self) -> None:
        """Let the app send again."""
        self._writable.set()

    def ask(self) -> None:
        """Send bytes without a meaning. If the client has gone, its machine says so."""
        if self._started and self._event_stream:
            self.write_part(_COMMENT)
        elif not self._started and self._head.version == "1.1":
            # Clients skip it, whether they have asked for it or not (RFC 9110, 15.2).
            self._write(_CONTINUE)

    async def receive(self) -> Message:
        """ASGI's receive. Raises what the request failed with."""
        if not self._parts and not self._arrived and self._failure is None:
            if self._awaits_continue and not self._started:
                self._write(_CONTINUE)
            self._awaits_continue = False
        while True:
            if self._gone or self.complete:
                return {"type": "http.disconnect"}
            if self._failure is not None:
                raise self._failure
            if self._parts or (self._arrived and not self._delivered):
                return self._body()
            self._news.clear()
            await self._news.wait()

    def _body(self) -> Message:
        body, self._parts = b"".join(self._parts), []
        self._kept_bytes = 0
        self._delivered = self._arrived
        self._wire.want_more()
        return {"type": "http.request", "body": body, "more_body": not self._arrived}

    async def send(self, message: Message) -> None:
        """ASGI's send. Does nothing if the client has gone: ``receive`` says so (ASGI 2.3)."""
        if not self._writable.is_set():
            await self._writable.wait()
        if self._gone:
            # An app that only sends would hold everybody up.
            await asyncio.sleep(0)
            return
        if message["type"] == "http.response.start":
            self._start(message["status"], message["headers"])
            return
        if not self._started or self.complete:
            raise RuntimeError("a part of an answer before its start or after its end")
        more: bool = message.get("more_body", False)
        body: bytes = message.get("body", b"")
        if body or not more:
            self.write_part(body, last=not more)
        if not more:
            if self._missing_bytes:
                raise RuntimeError("an answer is shorter than its content-length")
            self.complete = True
            self._news.set()
            self._wire.answered(whole=True)

    def is_free(self) -> bool:
        """See ``exchange.BodyWriter``."""
        return not self._gone and self._writable.is_set()

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if self._started:
            raise RuntimeError("an answer started twice")
        self._started = True
        self.closing = self.closing or not self._arrived
        lines = [_STATUS_LINES[status], b"date: %b\r\n" % _date(int(time.time()))]
        lines += [b"%b: %b\r\n" % header for header in headers if self._is_sent(*header)]
        if self._head.method == "HEAD" or status in _BODILESS:
            self._missing_bytes = 0
        elif self._missing_bytes is None:
            # The end of the connection is the end of an answer to HTTP/1.0.
            self._chunked = self._head.version == "1.1"
            if self._chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
        if self.closing:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._write(b"".join(lines))

    def _is_sent(self, name: bytes, value: bytes) -> bool:
        """Returns whether a header of the app is sent as it is. Notes what it says."""
        if _CONTROL.search(value):
            raise RuntimeError("a header of an answer has a control character")
        if name == b"connection":
            self.closing = self.closing or value == b"close"
            return False
        if name == b"content-length":
            self._missing_bytes = int(value)
        elif name == b"content-type":
            self._event_stream = value.startswith(b"text/event-stream")
        return True

    def write_part(self, body: bytes, *, last: bool = False) -> None:
        """See ``exchange.BodyWriter``."""
        if self._chunked:
            end = b"0\r\n\r\n" if last else b""
            self._write(b"%x\r\n%b\r\n%b" % (len(body), body, end) if body else end)
            return
        if self._missing_bytes is not None:
            if self._head.method == "HEAD":
                return
            self._missing_bytes -= len(body)
            if self._missing_bytes < 0:
                raise RuntimeError("an answer is longer than its content-length")
        if body:
            self._write(body)


@lru_cache(maxsize=1)
def _date(unix_s: int) -> bytes:
    return formatdate(unix_s, usegmt=True).encode()
