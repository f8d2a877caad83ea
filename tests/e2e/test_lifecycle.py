"""Shutdown, clients that leave and failures, with real sockets and signals."""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from e2e.process import Server, serving
from e2e.wire import Stream

LONG: dict[str, Any] = {"model": "tiny", "prompt": "a", "ignore_eos": True, "seed": 1}


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path) -> Iterator[Server]:
    arguments = ("--model", f"tiny={tiny_model}", "--slots", "8", "--threads", "1")
    with serving(tmp_path / "stderr", *arguments) as server:
        yield server


@pytest.fixture
def stream() -> Iterator[Callable[..., Stream]]:
    """Opens streams; closes them at the end."""
    with contextlib.ExitStack() as opened:

        def open_one(server: Server, *, receive_bytes: int | None = None, **body: Any) -> Stream:
            made = Stream(server.port, {**LONG, **body}, receive_bytes=receive_bytes)
            opened.callback(made.close)
            return made

        yield open_one


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_streams_finish(
    tiny: Server, number: signal.Signals, stream: Callable[..., Stream]
) -> None:
    frames = stream(tiny, max_tokens=1500).frames()
    first = json.loads(next(frames))
    waiting = socket.create_connection(("127.0.0.1", tiny.port))
    tiny.process.send_signal(number)
    *rest, last = frames
    assert last == "[DONE]"
    assert json.loads(rest[-1])["choices"][0]["finish_reason"] == "length"
    assert first["id"] == json.loads(rest[-1])["id"]
    assert tiny.process.wait() == 0
    waiting.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", tiny.port))


def test_what_outlasts_the_grace_is_cut(
    tmp_path: Path, tiny_model: Path, stream: Callable[..., Stream]
) -> None:
    """The stream ends without ``[DONE]``; the process still exits 0."""
    arguments = ("--model", f"tiny={tiny_model}", "--slots", "1", "--shutdown-grace-s", "0")
    with serving(tmp_path / "stderr", *arguments) as server:
        # A reader that stalls keeps its answer from ending.
        frames = stream(server, max_tokens=8000, receive_bytes=2048).frames()
        next(frames)
        assert server.stop() == 0
        assert "[DONE]" not in list(frames)


def test_a_client_that_leaves_frees_its_slots(tiny: Server, stream: Callable[..., Stream]) -> None:
    leaving = stream(tiny, n=4, max_tokens=8000)
    next(leaving.frames())
    assert tiny.figure("active_slots") == 4
    leaving.close()
    while tiny.figure("active_slots"):
        # If the server did not notice, the slots would be free after 32,000 tokens.
        assert tiny.figure("generated_tokens_total") < 30_000
    # The server noticed and did not generate the rest.
    assert tiny.figure("generated_tokens_total") < 30_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process")
def test_a_stalled_reader_holds_nobody_up(tiny: Server, stream: Callable[..., Stream]) -> None:
    """Others finish while one client reads nothing. Later it gets its whole answer."""
    body = {**LONG, "max_tokens": 3000, "logprobs": 5}
    before = resident_bytes(tiny)
    stalled = stream(tiny, **body, receive_bytes=2048)
    for _ in range(3):
        stream(tiny, max_tokens=200).text()
    while tiny.figure("active_slots"):
        pass
    # The memory that waits for it is small, compared with the engine's own for six streams.
    assert resident_bytes(tiny) - before < 64_000_000
    whole = httpx2.post(f"{tiny.url}/v1/completions", json=body, timeout=None).json()
    assert stalled.text() == whole["choices"][0]["text"]


def resident_bytes(server: Server) -> int:
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024


def test_eight_streams_all_progress(tiny: Server, stream: Callable[..., Stream]) -> None:
    """All streams have begun before the first one ends."""
    began: list[int] = []
    with selectors.DefaultSelector() as selector:
        for i in range(8):
            opened = stream(tiny, max_tokens=1000, seed=i)
            selector.register(opened.socket, selectors.EVENT_READ, i)
        ended = False
        while not ended:
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                part = key.fileobj.recv(65536)
                if b"data: {" in part and key.data not in began:
                    began.append(key.data)
                ended = ended or b"data: [DONE]" in part
    assert sorted(began) == list(range(8))


def test_a_broken_request_harms_nobody(tiny: Server, stream: Callable[..., Stream]) -> None:
    """After bytes that are not HTTP, half a body or a lost client, a request is answered."""
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", tiny.port)) as connection:
            connection.sendall(data)
    assert stream(tiny, max_tokens=5).text()
    assert tiny.stop() == 0
