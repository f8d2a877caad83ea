"""The server's HTTP as strangers use it, over plain sockets: H15, S8, S11, and every limit."""

from __future__ import annotations

import asyncio
import json
import queue
import re
import socket
import ssl
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
import requests

from afterword.core import wire
from afterword.core.errors import AuthenticationFailed
from afterword.engine.batching.runner import Batch
from afterword.engine.toy import toy_engine
from afterword.http.app import Access
from afterword.http.frames import frame
from afterword.http.middleware import AccessRecord
from afterword.http.no_ledger import NoLedger
from afterword.http.server.connection import Timeouts
from afterword.http.server.head import MOST_HEAD_BYTES
from conftest import make_client
from support.http_server import HttpServer, Peer, chunked, http_server, post

BODY: dict[str, Any] = {"model": "toy", "prompt": "a", "max_tokens": 3, "ignore_eos": True}
STREAM = {**BODY, "stream": True}
LONG = {**BODY, "max_tokens": 250}
NOBODY = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHECK_S = 0.05
OFTEN = Timeouts(check_s=CHECK_S)
SHORT = Timeouts(read_s=0.2, write_s=0.2, idle_s=0.2, check_s=CHECK_S)


class Toy:
    """A server of the toy model whose steps a test can hold up. ``records`` are its log."""

    def __init__(self) -> None:
        self.records: queue.Queue[AccessRecord] = queue.Queue()
        self.go = threading.Event()
        self.go.set()
        self.engine = toy_engine(before_decode=self._before)

    def _before(self, _: Batch) -> None:
        self.go.wait()

    def app(self, **more: Any) -> Any:
        def keep(record: AccessRecord, _: object) -> None:
            self.records.put(record)

        return make_client({"toy": self.engine}, observe=keep, **more).app

    def close(self) -> None:
        self.go.set()
        asyncio.run(self.engine.aclose())


@pytest.fixture
def toy() -> Iterator[Toy]:
    made = Toy()
    yield made
    made.close()


@pytest.fixture
def server(toy: Toy) -> Iterator[HttpServer]:
    with http_server(toy.app(), timeouts=OFTEN) as running:
        yield running


@pytest.fixture
def hasty(toy: Toy) -> Iterator[HttpServer]:
    """A server whose time is short."""
    with http_server(toy.app(), timeouts=SHORT) as running:
        yield running


# Offers of other protocols.


@pytest.mark.parametrize(
    "offer",
    [
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQC"),
        ("connection: upgrade", "upgrade: H2C"),
        ("CONNECTION: UPGRADE", "UPGRADE: WebSocket", "Sec-WebSocket-Version: 13"),
        ("Upgrade: TLS/1.0, HTTP/2.0, websocket", "Connection: keep-alive, Upgrade"),
        ("Upgrade: h2c", "Upgrade: websocket", "Connection: Upgrade"),
        ("Upgrade: h2c",),
        ("Connection: Upgrade",),
    ],
)
def test_offers_are_ignored(server: HttpServer, offer: tuple[str, ...]) -> None:
    """The request is answered, and the connection goes on."""
    with server.connect() as peer:
        for _ in range(2):
            peer.send(post(BODY, *offer))
            reply = peer.reply()
            assert reply.status == 200
            assert reply.json()["usage"]["completion_tokens"] == 3
            assert "upgrade" not in reply.headers


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/0.9\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"FROB / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        *(
            b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host
            for host in (b"x y", b"\xc3\xa9", b"name@x", b"x/y", b"x?", b'"x"', b"<x>")
        ),
        b"GET / RTSP/1.0\r\nHost: x\r\n\r\n",
        b"DESCRIBE / RTSP/1.0\r\nHost: x\r\n\r\n",
        b"SOURCE / ICE/1.0\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_H15_what_cannot_be_read(toy: Toy, server: HttpServer, data: bytes, size: int) -> None:
    """The envelope, an id, a line in the log, and the end of the connection."""
    with server.connect() as peer:
        for at in range(0, len(data), size):
            peer.send(data[at : at + size])
        reply = peer.reply()
        assert reply.status == 400
        assert reply.error()["type"] == "invalid_request_error"
        assert reply.headers["connection"] == "close"
        assert peer.rest() == b""
    record = toy.records.get(timeout=60)
    assert (record.status, record.outcome) == (400, "refused")
    assert reply.headers["x-request-id"] == record.request_id


@pytest.mark.parametrize(
    "ending",
    [b"zz\r\n", b"-1\r\n", b"5\n", b"5\r\nhellox", b"5\r\nhello\n", b"0x5\r\n", b"\r\n", b" 5\r\n",
     b"10000000000000000\r\n", b"5;a\0\r\n", b"0\r\nno colon\r\n", b"0\r\n a: b\r\n",
     b"0\r\na: \0\r\n"],
)  # fmt: skip
def test_H15_broken_chunks(server: HttpServer, ending: bytes) -> None:
    reply = server.ask(chunked(b"{", ending=ending))
    assert reply.status == 400
    assert "chunks" in reply.error()["message"]
    assert reply.headers["connection"] == "close"


# Time.


IDLE = (
    (b"", None),
    (b"\r\n", None),
    (b"\r\n\r\n\r\n", None),
    (b"P", 408),
    (b"POST /v1/comp", 408),
    (b"POST /v1/completions HTTP/1.1\r\n", 408),
    (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Le", 408),
    (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", 408),
    (post(BODY)[:-1], 408),
    (chunked(b"{}", ending=b""), 408),
    (chunked(b"{}", ending=b"0\r\nx: y"), 408),
    (chunked(b"{}", ending=b"1234"), 408),
)


@pytest.mark.parametrize("before", [b"", NOBODY, post(BODY), post(STREAM)])
def test_every_idle_moment_has_an_end(hasty: HttpServer, before: bytes) -> None:
    """Whatever came before, a client that stays silent is cut off; half a request gets a 408."""
    with ExitStack() as opened:
        peers = []
        for data, _ in IDLE:
            # Not all at first: a slow server would cut off those that wait for their turn.
            peer = opened.enter_context(hasty.connect())
            peers.append(peer)
            if before:
                peer.send(before)
                assert peer.reply().status == 200
            peer.send(data)
        for peer, (_, status) in zip(peers, IDLE, strict=True):
            if status is not None:
                reply = peer.reply()
                assert reply.status == status
                assert reply.error()["type"] == "invalid_request_error"
            assert peer.rest() == b""


@pytest.mark.parametrize(
    "data", [post(BODY), b"\r\n" * 10_000, chunked(b"{}", ending=b"0\r\na: b")]
)
@pytest.mark.parametrize("before", [b"", NOBODY])
def test_dripping_does_not_help(hasty: HttpServer, data: bytes, before: bytes) -> None:
    """One byte at a time, each long before the time is over."""
    with hasty.connect() as peer:
        if before:
            peer.send(before)
            peer.reply()
        peer.socket.settimeout(0.03)
        for at in range(len(data)):
            peer.send(data[at : at + 1])
            try:
                if not peer.socket.recv(1000):
                    break
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
        else:
            pytest.fail("the whole request was waited for")


def test_a_client_that_takes_nothing_is_dropped(toy: Toy) -> None:
    """A megabyte of answer waits, and nobody reads. The stream ends, and its work."""

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        assert await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        left = asyncio.ensure_future(receive())
        while not left.done():
            message = {"type": "http.response.body", "body": b"x" * 65_536, "more_body": True}
            await send(message)
        assert left.result() == {"type": "http.disconnect"}
        dropped.set()

    dropped = threading.Event()
    with http_server(endless, timeouts=SHORT) as running, running.connect() as peer:
        peer.send(NOBODY)
        assert dropped.wait(60)


def test_a_slow_reader_is_not_dropped(toy: Toy) -> None:
    """It takes a little every now and then, for longer than a client may take nothing."""

    async def large(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * (32 << 20), "more_body": False})

    with http_server(large, timeouts=SHORT) as running, running.connect() as peer:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        peer.send(NOBODY)
        assert len(peer.reply().body) == 32 << 20


# Size.


def filled(size_bytes: int, start: bytes = b"GET /health HTTP/1.1\r\nHost: x\r\n") -> bytes:
    """A head of exactly this size."""
    missing = size_bytes - len(start) - len(b"A: \r\n\r\n")
    return start + b"A: " + b"a" * missing + b"\r\n\r\n"


@pytest.mark.parametrize("size", [1, 1000, 16_384, 1 << 20])
def test_H15_a_head_has_64_kib(server: HttpServer, size: int) -> None:
    """However it is cut into packets. The connection goes on after the largest one."""
    step = max(size, 50) if size > 1 else 4096
    with server.connect() as peer:
        for most in (MOST_HEAD_BYTES, MOST_HEAD_BYTES):
            data = filled(most)
            for at in range(0, len(data), step):
                peer.send(data[at : at + step])
            assert peer.reply().status == 200
        data = filled(MOST_HEAD_BYTES + 1)
        for at in range(0, len(data), step):
            peer.send(data[at : at + step])
        reply = peer.reply()
        assert reply.status == 431
        assert str(MOST_HEAD_BYTES) in reply.error()["message"]


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 10_000_000,
        b"G" * 70_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a" * 70_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"a%d: b\r\n" % i for i in range(9000)),
        b"\r\n" * 40_000,
        chunked(b"{}", ending=b"0\r\n" + b"".join(b"x%d: y\r\n" % i for i in range(900_000))),
        chunked(b"{}", ending=b"0\r\nx: " + b"y" * 10_000_000),
        chunked(b"{}", ending=b"2;" + b"a" * 10_000_000),
        chunked(b"{}", ending=b"1" * 10_000_000),
        chunked(b"{}", ending=b"1;aaaaaaaaaaaaaaaaaaaaa\r\nx\r\n" * 300_000),
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nA: "
        + b"a" * 60_000 + b"\r\n\r\n0\r\nx: " + b"y" * 6000 + b"\r\n\r\n",
    ],
)  # fmt: skip
def test_H15_what_has_no_end_is_refused(server: HttpServer, data: bytes) -> None:
    """Heads, lines of chunks and trailers, together with the head."""
    with server.connect() as peer:
        sender = threading.Thread(target=peer.send, args=(data,))
        sender.start()
        reply = peer.reply()
        sender.join()
        assert reply.status in {400, 431}
        assert reply.status == 431 or b"\r\n1" in data or data.startswith(b"G" * 9)
        assert reply.error()["type"] == "invalid_request_error"
        assert peer.rest() == b""


def test_trailers_and_extensions_within_the_limit(server: HttpServer) -> None:
    """They mean nothing, and the connection goes on."""
    body = b'{"model": "toy", "max_tokens": 1}'
    parts = b"".join(b'1 ;name="value"\r\n%c\r\n' % byte for byte in body)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\ntransfer-encoding: CHUNKED\r\n\r\n"
    trailers = b"0\r\nexpires: never\r\nx: " + b"y" * 50_000 + b"\r\n\r\n"
    with server.connect() as peer:
        for _ in range(2):
            peer.send(head + parts + trailers)
            assert peer.reply().status == 200


def test_H6_a_body_that_is_too_large(server: HttpServer) -> None:
    """The answer arrives although the client is still sending."""
    for data in (
        post(b"", "Content-Length: 99999999999").replace(b"Content-Length: 0\r\n", b"") + b"{" * 9,
        chunked(b"x" * (17 << 20)),
    ):
        with server.connect() as peer:
            peer.send(data)
            reply = peer.reply()
            assert reply.status == 413
            assert reply.headers["connection"] == "close"
            reply.error()


@pytest.mark.parametrize("zeros", [1, 20, 5000, 60_000])
def test_a_length_may_begin_with_zeros(server: HttpServer, zeros: int) -> None:
    """Python takes 4,300 digits. The connection goes on."""
    head, _, body = post(BODY).partition(b"\r\n\r\n")
    named = head.replace(b"Content-Length: ", b"Content-Length: " + b"0" * zeros)
    assert named != head
    with server.connect() as peer:
        for _ in range(2):
            peer.send(named + b"\r\n\r\n" + body)
            assert peer.reply().status == 200


def test_many_tiny_chunks_are_a_body(server: HttpServer) -> None:
    body = b'{"model": "toy", "max_tokens": 1, "user": "%s"}' % (b"u" * 1000)
    parts = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    reply = server.ask(chunked(b" " * 100_000, ending=parts + b"0\r\n\r\n"))
    assert reply.status == 200


# Connections.


def test_connections_above_the_limit_are_closed(toy: Toy) -> None:
    with http_server(toy.app(), most=2) as running:
        first, second = running.connect(), running.connect()
        first.send(NOBODY)
        second.send(NOBODY)
        assert (first.reply().status, second.reply().status) == (200, 200)
        with running.connect() as third:
            assert third.rest() == b""
        first.reset()
        # A place is free as soon as the server sees the reset.
        while True:
            with running.connect() as fourth:
                fourth.send(NOBODY)
                if fourth.is_answered():
                    break
        second.socket.close()


def test_files_that_run_out_stop_nobody(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The queue waits, and is served when there are files again; one line is logged."""
    failures = iter([True, True])
    accept = socket.socket.accept

    def fail_twice(listening: socket.socket) -> tuple[socket.socket, Any]:
        if next(failures, False):
            raise OSError(24, "Too many open files")
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", fail_twice)
    with http_server(toy.app()) as running:
        assert running.ask(NOBODY).status == 200
    assert caplog.text.count("Too many open files") == 2


# TLS.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ssl.SSLContext]:
    def make(name: str) -> ssl.SSLContext:
        folder = tmp_path_factory.mktemp("tls")
        subprocess.run(
            ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt",
             "ec_paramgen_curve:P-256", "-subj", f"/CN={name}", "-keyout", folder / "key.pem",
             "-out", folder / "chain.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
        return context

    return make


def certificate_of(peer: Peer) -> bytes:
    """The certificate that the server has shown to a connection."""
    assert isinstance(peer.socket, ssl.SSLSocket)
    return peer.socket.getpeercert(binary_form=True) or b""


def greeted(server: HttpServer) -> Peer:
    """A connection after its handshake."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    return Peer(context.wrap_socket(plain))


@pytest.mark.parametrize("data", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01", b"GET / HTTP"])
def test_a_handshake_has_its_time_and_counts(
    toy: Toy, certificates: Callable[[str], ssl.SSLContext], data: bytes
) -> None:
    with http_server(toy.app(), timeouts=SHORT, most=3, tls=certificates("a")) as running:
        silent = [running.connect() for _ in range(3)]
        for peer in silent:
            peer.send(data)
        for peer in silent:
            peer.rest()
            peer.socket.close()
        with greeted(running) as peer:
            peer.send(NOBODY)
            assert peer.reply().status == 200


def test_a_connection_before_its_handshake_counts(
    toy: Toy, certificates: Callable[[str], ssl.SSLContext]
) -> None:
    with (
        http_server(toy.app(), most=1, tls=certificates("a")) as running,
        running.connect(),
        running.connect() as second,
    ):
        # The first one says nothing, and has the only place.
        assert second.rest() == b""


def test_a_new_certificate_is_for_new_connections(
    toy: Toy, certificates: Callable[[str], ssl.SSLContext]
) -> None:
    with http_server(toy.app(), tls=certificates("old")) as running, greeted(running) as old:
        running.tls = certificates("new")
        with greeted(running) as new:
            assert b"old" in certificate_of(old)
            assert b"new" in certificate_of(new)
            for each in (old, new):
                each.send(post(BODY))
                assert each.reply().status == 200


# Old, half-closed, pipelining and leaving clients.


def test_S11_http_1_0_has_no_chunks(server: HttpServer) -> None:
    with server.connect() as peer:
        peer.send(post(STREAM, version="1.0"))
        status, headers = peer.head()
        body = peer.rest()
    assert status == 200
    assert "transfer-encoding" not in headers
    assert headers["connection"] == "close"
    assert re.fullmatch(rb"(data: \{.*\}\n\n)+data: \[DONE\]\n\n", body)


def test_http_1_0_needs_no_host(server: HttpServer) -> None:
    reply = server.ask(b"GET /health HTTP/1.0\r\n\r\n")
    assert reply.status == 200
    assert reply.headers["connection"] == "close"


@pytest.mark.parametrize("body", [BODY, STREAM])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("held_up", [False, True])
def test_S11_a_client_that_half_closes_gets_its_answer(
    toy: Toy, server: HttpServer, body: dict[str, Any], version: str, held_up: bool
) -> None:
    """Also when the answer takes longer than the moment after which the server asks."""
    if held_up:
        toy.go.clear()
    with server.connect() as peer:
        peer.send(post(body, version=version))
        peer.end()
        if held_up:
            threading.Timer(5 * CHECK_S, toy.go.set).start()
        reply = peer.reply()
        assert reply.status == 200
        assert reply.body.endswith(b"data: [DONE]\n\n" if "stream" in body else b"}")
        assert peer.rest() == b""
    assert toy.records.get(timeout=60).outcome == "answered"


def test_half_a_request_and_the_end(server: HttpServer) -> None:
    for data in (post(BODY)[:-1], post(BODY)[:50], chunked(b"{}", ending=b"0\r\n")):
        with server.connect() as peer:
            peer.send(data)
            peer.end()
            reply = peer.reply()
            assert reply.status == 400
            assert "ended" in reply.error()["message"]
            assert peer.rest() == b""
    with server.connect() as peer:
        peer.end()
        assert peer.rest() == b""


def test_pipelined_requests_are_answered_in_order(server: HttpServer) -> None:
    with server.connect() as peer:
        peer.send(post(STREAM) + post(BODY) + NOBODY + b"\r\n" + chunked(b"{}") + post(BODY))
        peer.end()
        replies = [peer.reply() for _ in range(5)]
        assert [reply.status for reply in replies] == [200, 200, 200, 400, 200]
        assert replies[0].body.endswith(b"[DONE]\n\n")
        assert replies[2].json()["status"] == "ok"
        assert peer.rest() == b""


@pytest.mark.parametrize("body", [LONG, {**LONG, "stream": True}])
@pytest.mark.parametrize("leave", ["reset", "close"])
@pytest.mark.parametrize(
    "behind", [b"", post(BODY), post(BODY)[:-5], b"\r\n", b"x" * 1000, b"y" * (2 << 20)]
)
def test_S8_a_client_that_leaves_is_noticed(
    toy: Toy, server: HttpServer, caplog: pytest.LogCaptureFixture,
    body: dict[str, Any], leave: str, behind: bytes,
) -> None:  # fmt: skip
    """Whatever it has sent behind its request, and although no token is sent meanwhile."""
    toy.go.clear()
    peer = server.connect()
    peer.send(post(body))
    if "stream" in body:
        assert peer.head()[0] == 200
    peer.socket.settimeout(0)
    try:
        peer.socket.send(behind)
    except BlockingIOError:
        assert len(behind) > MOST_HEAD_BYTES
    if leave == "reset":
        peer.reset()
    else:
        peer.__exit__()
    record = toy.records.get(timeout=60)
    assert record.outcome == "client_gone"
    assert (record.completion_tokens or 0) == 0
    assert "Traceback" not in caplog.text
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


# Bodies, targets, expectations.


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "GZIP", "identity, gzip"])
@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/v1/engines/toy/completions"])
def test_H14_compressed_bodies(server: HttpServer, encoding: str, path: str) -> None:
    data = post(zlib.compress(b"{}"), f"Content-Encoding: {encoding}", path=path)
    reply = server.ask(data)
    assert reply.status == 415
    assert "Content-Encoding" in reply.error()["message"]


@pytest.mark.parametrize("encoding", ["identity", "Identity", "", "identity, identity"])
def test_H14_identity_is_fine(server: HttpServer, encoding: str) -> None:
    assert server.ask(post(BODY, f"Content-Encoding: {encoding}")).status == 200


def test_expectations(server: HttpServer) -> None:
    """100 when the body is wanted, and the refusal at once if it is known already."""
    body = post(BODY).partition(b"\r\n\r\n")[2]
    with server.connect() as peer:
        for _ in range(2):
            peer.send(post(BODY, "Expect: 100-Continue").partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
            assert peer.head() == (100, {})
            peer.send(body)
            assert peer.reply().status == 200
        peer.send(post(BODY, "Expect: 100-continue"))
        status, headers = peer.head()
        # A body that is there already needs no invitation.
        assert status == 200
        peer._read.read(int(headers["content-length"]))
        peer.send(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Length: 99999999\r\n\r\n"
        )
        status, headers = peer.head()
        assert status == 413
        assert headers["connection"] == "close"
    for name in ("Content-Encoding: gzip", "Content-Length: 3"):
        path = "/v1/completions" if "gzip" in name else "/nowhere"
        length = "Content-Length: 3\r\n" if "gzip" in name else ""
        with server.connect() as peer:
            peer.send(
                f"POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n{length}{name}"
                "\r\n\r\n".encode()
            )
            assert peer.head()[0] == (415 if "gzip" in name else 404)


class Stranger(NoLedger):
    """A ledger that knows nobody."""

    async def authenticate(self, secret: str | None, source: str) -> Any:
        raise AuthenticationFailed("Who are you?")


def test_an_expectation_without_a_key(toy: Toy) -> None:
    app = toy.app(access=Access(ledger=Stranger()))
    with http_server(app) as running, running.connect() as peer:
        peer.send(post(b"{}", "Expect: 100-continue")[:-2])
        status, headers = peer.head()
        assert status == 401
        assert headers["connection"] == "close"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/v1/models", 200), ("/v1/models?x=y", 200), ("/v1/models#x", 200), ("/v1/models/", 200),
        ("/models", 200), ("/models/", 200), ("/models/toy", 200), ("/v1/models/toy/", 200),
        ("/v1/%6dodels", 200), ("/v1%2Fmodels", 200), ("http://localhost/v1/models", 200),
        ("HTTP://localhost:80/v1/models?a", 200), ("http://localhost", 200), ("/health/", 200),
        ("//v1/models", 200), ("//v2/models", 404), ("/v1/models%00", 404), ("*", 404),
        ("/v1/models/a%ff", 404), ("/%", 404), ("/v1/../v1/models", 404), ("/v2/models", 404),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_targets(server: HttpServer, target: str, status: int, method: str) -> None:
    """No path is a redirect. HEAD has the head of GET, and no body."""
    with server.connect() as peer:
        peer.send(f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() + NOBODY)
        found, headers = peer.head()
        assert found == status
        assert int(headers["content-length"]) > 0
        if method == "GET":
            peer._read.read(int(headers["content-length"]))
        assert peer.head()[0] == 200


@pytest.mark.parametrize(
    ("line", "status"),
    [("OPTIONS * HTTP/1.1", 404), ("OPTIONS /v1/completions HTTP/1.1", 405),
     ("CONNECT example.com:443 HTTP/1.1", 404), ("PUT /v1/completions HTTP/1.1", 405),
     ("GET /completions HTTP/1.1", 405), ("TRACE / HTTP/1.1", 405)],
)  # fmt: skip
def test_methods(server: HttpServer, line: str, status: int) -> None:
    with server.connect() as peer:
        peer.send(f"{line}\r\nHost: localhost\r\n\r\n".encode() + NOBODY)
        reply = peer.reply()
        assert reply.status == status
        method, target, _ = line.split()
        assert reply.error()["message"] == f"Invalid URL ({method} {target})"
        assert ("allow" in reply.headers) == (status == 405)
        assert peer.reply().status == 200


def test_the_host_of_a_url_counts(toy: Toy) -> None:
    """A page whose name leads here is refused, however it writes its request."""
    with http_server(toy.app(access=Access(guarded=True))) as running:
        for target, host, status in (
            ("/v1/models", "localhost", 200),
            ("/v1/models", "evil.example", 401),
            ("http://evil.example/v1/models", "localhost", 401),
            ("http://localhost/v1/models", "evil.example", 200),
        ):
            data = f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
            assert running.ask(data).status == status


# Readers of lines.

LINES = "A\u2028B\u2029C\x85D 入 ✅\x0bE\x0cF\x1cG\x1dH\x1eI\rJ\nK"


def lines_of_requests(url: str, body: dict[str, Any]) -> Iterator[str]:
    with requests.post(url, json=body, stream=True, timeout=60) as reply:
        assert reply.encoding == "utf-8"
        yield from map(str, reply.iter_lines(decode_unicode=True))


def lines_of_httpx(url: str, body: dict[str, Any]) -> Iterator[str]:
    with httpx2.stream("POST", url, json=body, timeout=60) as reply:
        yield from reply.iter_lines()


def lines_of_str(url: str, body: dict[str, Any]) -> Iterator[str]:
    yield from httpx2.post(url, json=body, timeout=60).text.splitlines()


@pytest.mark.parametrize("lines", [lines_of_requests, lines_of_httpx, lines_of_str])
def test_S11_no_reader_of_lines_splits_an_event(
    server: HttpServer, lines: Callable[[str, dict[str, Any]], Iterator[str]]
) -> None:
    body = {**STREAM, "prompt": LINES, "echo": True, "logprobs": 1, "max_tokens": 0}
    url = f"http://127.0.0.1:{server.port}/v1/completions"
    *events, last = [line for line in lines(url, body) if line]
    assert last == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == LINES


def test_S11_errors_are_one_line() -> None:
    """A model's name, or whatever else an error quotes, splits no event."""
    event = frame(wire.ErrorEnvelope(wire.ErrorBody(LINES, "server_error", LINES, None)))
    assert event.endswith(b"\n\n")
    (line,) = event[:-2].decode().splitlines()
    assert json.loads(line.removeprefix("data: "))["error"]["param"] == LINES
