"""A connection without a network: what it reads, and when it lets the client send."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from afterword.http.exchange import BODY_WRITER, BodyWriter
from afterword.http.server.connection import ClientConnection, Timeouts
from afterword.http.server.register import Register

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


class Wire(asyncio.Transport):
    """The client's side: what is written, and whether the server reads."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__({"socket": connected})
        self.written = b""
        self.reading = True
        self.closed = False
        self.unsent_bytes = 0

    def write(self, data: Any) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


async def echo_length(scope: Scope, receive: Receive, send: Send) -> None:
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message["body"])
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d bytes" % length})


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


@contextmanager
def connected(app: ASGIApp) -> Iterator[tuple[Wire, ClientConnection]]:
    """Yields a client's side and its connection to an app."""
    left, right = socket.socketpair()
    with left, right:
        wire = Wire(left)
        connection = ClientConnection(app, Timeouts(), Register())
        connection.connection_made(wire)
        yield wire, connection
        connection.connection_lost(None)


@pytest.mark.parametrize("size", [1, 17_000, 33_000, 60_000])
@pytest.mark.parametrize("ending", [b"0\r\nx: %b", b"1;%b"])
async def test_what_has_no_content_does_not_stop_the_reading(size: int, ending: bytes) -> None:
    """The app is not woken by extensions and trailers, so it cannot ask for more."""
    with connected(echo_length) as (wire, connection):
        connection.data_received(HEAD + b"2\r\n{}\r\n")
        connection.data_received(ending % (b"y" * size))
        for _ in range(20):
            await asyncio.sleep(0)
        assert wire.reading
        connection.data_received(b"\r\n\r\n" if b"0" in ending else b"\r\n!\r\n0\r\n\r\n")
        for _ in range(20):
            await asyncio.sleep(0)
        assert b"200" in wire.written


async def test_tiny_chunks_take_little_more_than_their_bytes() -> None:
    """An app that does not read, as while a wrong key waits, has 64 KiB of content kept for it."""
    with connected(silent) as (wire, connection):
        connection.data_received(HEAD)
        tracemalloc.start()
        while wire.reading:
            connection.data_received(b"2\r\n{}\r\n" * 1000)
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        kept_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert kept_bytes < 500_000


@pytest.fixture
def stand_still(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Returns what lets seconds pass in which the process did not run."""
    shift_s = 0.0

    def stand(seconds: float) -> None:
        nonlocal shift_s
        loop, shift_s = asyncio.get_running_loop(), shift_s + seconds
        clock = type(loop).time
        monkeypatch.setattr(loop, "time", lambda: clock(loop) + shift_s)

    return stand


async def until_looked(connection: ClientConnection) -> None:
    """Let the connection look at its times once."""
    before = connection._timer
    while connection._timer is before:
        await asyncio.sleep(0)


async def test_what_came_while_the_process_stood_still_is_read_first(
    stand_still: Callable[[float], None],
) -> None:
    with connected(echo_length) as (wire, connection):
        stand_still(60)
        await until_looked(connection)
        connection.data_received(HEAD + b"2\r\n{}\r\n")
        await until_looked(connection)
        stand_still(60)
        await until_looked(connection)
        connection.data_received(b"0\r\n\r\n")
        for _ in range(20):
            await asyncio.sleep(0)
        assert b"2 bytes" in wire.written
        stand_still(100)
        await until_looked(connection)
        assert not wire.closed
        await until_looked(connection)
        assert wire.closed  # no further request has come


@pytest.mark.parametrize("taken_bytes", [0, 1])
async def test_what_is_taken_when_the_process_goes_on_counts(
    stand_still: Callable[[float], None], taken_bytes: int
) -> None:
    with connected(silent) as (wire, connection):
        connection.data_received(HEAD + b"0\r\n\r\n")
        wire.unsent_bytes = 1000
        connection.pause_writing()
        stand_still(1)
        await until_looked(connection)
        stand_still(200)
        await until_looked(connection)
        assert not wire.closed
        wire.unsent_bytes -= taken_bytes
        stand_still(1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert wire.closed == (not taken_bytes)


async def test_parts_without_asgi() -> None:
    """They are framed as all others, and wait for a client that does not read or has gone."""
    writers: list[BodyWriter] = []
    gone = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        writers.append(scope[BODY_WRITER])
        await receive()
        gone.set()

    with connected(app) as (wire, connection):
        connection.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while not writers:
            await asyncio.sleep(0)
        (writer,) = writers
        assert writer.is_free()
        writer.write_part(b"part")
        assert wire.written.endswith(b"\r\n\r\n4\r\npart\r\n")
        connection.pause_writing()
        assert not writer.is_free()
        connection.resume_writing()
        assert writer.is_free()
        connection.connection_lost(None)
        assert not writer.is_free()
        await gone.wait()
