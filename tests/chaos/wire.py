"""A client on a plain socket that sees every byte: answers, parts of streams, and how they end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httptools

LIMIT_S = 150.0
"""A server that says nothing for so long hangs."""


class Reply:
    """One answer as far as it has come; ``whole`` when it has all come."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.whole = False

    @property
    def events(self) -> Sequence[str]:
        """The payloads of the server-sent events that have come whole."""
        frames = bytes(self.body).split(b"\n\n")[:-1]
        return [frame[6:].decode() for frame in frames if frame.startswith(b"data: ")]

    @property
    def event_count(self) -> int:
        return self.body.count(b"\n\ndata: ") + self.body.startswith(b"data: ")

    @property
    def streamed(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    def error(self) -> Mapping[str, Any]:
        """The inside of the envelope (H1). Raises ``ValueError`` if there is none."""
        try:
            envelope = json.loads(self.body)
            error: Mapping[str, Any] = envelope["error"]
        except (ValueError, TypeError, KeyError) as wrong:
            raise ValueError("an error without its envelope") from wrong
        if set(envelope) != {"error"} or set(error) != {"message", "type", "param", "code"}:
            raise ValueError("an envelope with other keys")
        return error


class _Parsing:
    """What httptools calls."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.parser = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        self.replies.append(Reply())

    def on_header(self, name: bytes, value: bytes) -> None:
        self.replies[-1].headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.replies[-1].status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.replies[-1].body += body

    def on_message_complete(self) -> None:
        # A provisional answer is followed by another.
        if self.replies[-1].status < 200:
            self.replies.pop()
        else:
            self.replies[-1].whole = True


class Wire:
    """One connection. Leaving its context resets it, whatever is on its way."""

    def __init__(self, port: int, *, receive_bytes: int | None = None) -> None:
        self._port = port
        self._receive_bytes = receive_bytes
        self._parsing = _Parsing()
        self.closed = False
        """Whether the server has closed its side."""

    async def __aenter__(self) -> Self:
        opened = socket.socket()
        try:
            if self._receive_bytes is not None:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
            opened.setblocking(False)  # noqa: FBT003 - the standard library's
            loop = asyncio.get_running_loop()
            await asyncio.wait_for(loop.sock_connect(opened, ("127.0.0.1", self._port)), LIMIT_S)
            self._reader, self._writer = await asyncio.open_connection(sock=opened, limit=4096)
        except BaseException:
            opened.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.transport.abort()

    @property
    def replies(self) -> Sequence[Reply]:
        return self._parsing.replies

    async def send(self, raw: bytes) -> None:
        """Send bytes. What the server does not take within the limit is a ``TimeoutError``."""
        self._writer.write(raw)
        await asyncio.wait_for(self._writer.drain(), LIMIT_S)

    def half_close(self) -> None:
        self._writer.write_eof()

    async def read(self, most_bytes: int = 65_536) -> bool:
        """Read what is there, or wait for more. Returns False at the end of the connection."""
        received = await asyncio.wait_for(self._reader.read(most_bytes), LIMIT_S)
        if received:
            self._parsing.parser.feed_data(received)
        else:
            self.closed = True
        return bool(received)

    async def reply(self, number: int = 0) -> Reply:
        """Read until answer ``number`` is whole. Returns it, cut if the connection ends before."""
        while not self._has(number) and await self.read():
            pass
        if len(self.replies) <= number:
            raise ConnectionResetError("the connection ended without an answer")
        return self.replies[number]

    async def until_events(self, count: int) -> Reply:
        """Read until a stream has so many events, or is whole, or ends."""
        while not self._has(0):
            if self.replies and self.replies[0].event_count >= count:
                break
            if not await self.read():
                break
        if not self.replies:
            raise ConnectionResetError("the connection ended without an answer")
        return self.replies[0]

    def _has(self, number: int) -> bool:
        return len(self.replies) > number and self.replies[number].whole


def request_bytes(
    body: object, *, key: str | None = None, path: str = "/v1/completions", close: bool = True,
    method: str = "POST", more: Mapping[str, str] | None = None,
) -> bytes:  # fmt: skip
    """A whole request. ``body`` is JSON, or bytes as they are."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {
        "Host": "localhost",
        "Content-Type": "application/json",
        "Content-Length": str(len(payload)),
        **({"Connection": "close"} if close else {}),
        **({} if key is None else {"Authorization": f"Bearer {key}"}),
        **(more or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + payload
