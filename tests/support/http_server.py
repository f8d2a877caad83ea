"""The server's own HTTP over an app, on a thread, and clients of it that speak bytes."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import uvloop
from starlette.types import ASGIApp

from afterword.http.server.connection import Timeouts
from afterword.http.server.listener import Listener
from afterword.http.server.register import Register

PATIENCE_S = 60
"""What a server does at once never takes this long. Only a test that fails waits for it."""


class HttpServer:
    """A running server. ``tls`` is the certificate for new connections."""

    def __init__(self, port: int, tls: ssl.SSLContext | None) -> None:
        self.port = port
        self.tls = tls
        self.register: Register | None = None

    def connect(self) -> Peer:
        """A new connection."""
        return Peer(socket.create_connection(("127.0.0.1", self.port)))

    def ask(self, data: bytes) -> Reply:
        """Send bytes on a connection of their own. Returns the first answer."""
        with self.connect() as peer:
            peer.send(data)
            return peer.reply()


@contextmanager
def http_server(
    app: ASGIApp,
    *,
    timeouts: Timeouts | None = None,
    most: int = 1000,
    tls: ssl.SSLContext | None = None,
) -> Iterator[HttpServer]:
    """Serve an app on a thread."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = HttpServer(bound.getsockname()[1], tls)
        ready = threading.Event()
        stops: list[Callable[[], object]] = []

        async def serve() -> None:
            register, end = Register(), asyncio.Event()
            loop = asyncio.get_running_loop()
            stops.append(lambda: loop.call_soon_threadsafe(end.set))
            listener = Listener(
                app, register, timeouts or Timeouts(), most=most, tls=lambda: server.tls
            )
            server.register = register
            listener.listen(bound)
            ready.set()
            await end.wait()
            await listener.close()
            listener.abort()
            await register.cut()
            await register.wait_until(register.is_empty)

        thread = threading.Thread(target=lambda: uvloop.run(serve()), daemon=True)
        thread.start()
        ready.wait()
        try:
            yield server
        finally:
            stops[0]()
            thread.join()


class Reply(NamedTuple):
    """An answer as it came. ``body`` is without its chunks, if it had some."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        """The error, in an envelope that has all it must have (H1)."""
        assert set(self.json()["error"]) == {"message", "type", "param", "code"}
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"].startswith("req_")
        found: dict[str, Any] = self.json()["error"]
        return found


class Peer:
    """A client that sends what it likes."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(PATIENCE_S)
        self.socket = connected
        self._read = connected.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._read.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes; a server that has had enough may close meanwhile."""
        try:
            self.socket.sendall(data)
        except (ConnectionResetError, BrokenPipeError):
            return

    def end(self) -> None:
        """Say that nothing more will come."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave without a word."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._read.close()
        self.socket.close()

    def head(self) -> tuple[int, dict[str, str]]:
        """Read the head of an answer. Returns its status and its headers."""
        line = self._read.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers: dict[str, str] = {}
        while (field := self._read.readline()) != b"\r\n":
            name, _, value = field.decode("latin-1").rstrip("\r\n").partition(": ")
            assert name not in headers
            headers[name] = value
        return int(line.split()[1]), headers

    def reply(self) -> Reply:
        """Read one answer, and no byte more unless the connection's end is its end."""
        status, headers = self.head()
        while status == 100:
            status, headers = self.head()
        if "content-length" in headers:
            body = self._read.read(int(headers["content-length"]))
            assert len(body) == int(headers["content-length"])
        elif headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self.chunk, b""))
        else:
            body = self._read.read()
        return Reply(status, headers, body)

    def is_answered(self) -> bool:
        """Whether an answer begins, and not the end."""
        try:
            return bool(self._read.peek(1))
        except ConnectionResetError:
            return False

    def chunk(self) -> bytes:
        """Read one chunk, which is empty at the end."""
        size = int(self._read.readline(), 16)
        data = self._read.read(size)
        assert self._read.readline() == b"\r\n"
        return data

    def rest(self) -> bytes:
        """Read to the end of the connection."""
        try:
            return self._read.read()
        except ConnectionResetError:
            return b""


def post(
    body: bytes | dict[str, Any],
    *more: str,
    path: str = "/v1/completions",
    version: str = "1.1",
) -> bytes:
    """The bytes of a POST; ``more`` are further headers."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = (f"POST {path} HTTP/{version}", "Host: localhost", *more, f"Content-Length: {len(raw)}")
    return "\r\n".join((*lines, "", "")).encode() + raw


def chunked(body: bytes, *, ending: bytes = b"0\r\n\r\n") -> bytes:
    """The bytes of a POST with one chunk."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n%b" % (len(body), body, ending)
