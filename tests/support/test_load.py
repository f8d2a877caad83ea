"""What the benchmarks' clients do with servers that say nothing, break off or end."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support import load

WHOLE = (
    b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": []}\n\n'
    b'data: {"usage": {"completion_tokens": 7, "x": 0}}\n\ndata: [DONE]\n\n'
)


@contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """A server that answers one request with these bytes, or never."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                if answer is None:
                    connection.recv(1)  # until the client gives up
                else:
                    connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        yield int(listener.getsockname()[1])
        server.join()


def test_tokens_are_counted_by_usage() -> None:
    with answering(WHOLE) as port:
        (timed,) = load.stream_all(port, [{}], limit_s=30)
    assert timed.tokens == 7
    assert timed.started < timed.first <= timed.last


def test_a_stream_that_breaks_off_is_an_error() -> None:
    with answering(WHOLE[:-16]) as port, pytest.raises(RuntimeError, match="broke"):
        load.stream_all(port, [{}])


def test_a_stream_without_an_end_is_given_up() -> None:
    with answering(None) as port:
        (timed,) = load.stream_all(port, [{}], limit_s=0.05)
    assert (timed.tokens, timed.first) == (0, 0)


def test_a_server_that_does_not_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="status 3"):
        load.start_s([sys.executable, "-c", "raise SystemExit(3)"], 9, {})
