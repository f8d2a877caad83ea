"""Clients that cost little, because they share cores with the server that they measure."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from support.processes import started


class Timed(msgspec.Struct):
    """When a stream's first and last tokens came, in seconds of one clock, and how many."""

    started: float
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0


def request_bytes(port: int, body: Mapping[str, Any]) -> bytes:
    """A whole HTTP request that ends the connection."""
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


def stream_all(
    port: int, bodies: Sequence[Mapping[str, Any]], *, limit_s: float | None = None
) -> list[Timed]:
    """Send all requests at once and read their streams to the end.

    Tokens are counted by the usage of the last chunk, so ``include_usage`` must be asked. Streams
    that have not ended after ``limit_s`` are given up: they have no tokens, and what has not come
    is 0.
    """
    until = None if limit_s is None else time.perf_counter() + limit_s
    selector = selectors.DefaultSelector()
    timed = []
    received: list[bytearray] = []
    for i, body in enumerate(bodies):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(request_bytes(port, body))
        selector.register(connection, selectors.EVENT_READ, i)
        timed.append(Timed(time.perf_counter()))
        received.append(bytearray())
    while selector.get_map():
        left_s = None if until is None else until - time.perf_counter()
        if left_s is not None and left_s <= 0:
            break
        for key, _ in selector.select(left_s):
            connection = key.fileobj  # type: ignore[assignment] # what was registered
            part = connection.recv(65536)
            now = time.perf_counter()
            i = key.data
            if not part:
                selector.unregister(connection)
                connection.close()
                continue
            received[i] += part
            if b"data: {" in part:
                timed[i].first = timed[i].first or now
                timed[i].last = now
    given_up = set()
    for key in selector.get_map().values():
        key.fileobj.close()  # type: ignore[union-attr] # what was registered
        given_up.add(key.data)
    for i, data in enumerate(received):
        timed[i].tokens = 0 if i in given_up else _completion_tokens(bytes(data))
    return timed


def start_s(command: list[str], port: int, body: Mapping[str, Any]) -> float:
    """Seconds from starting a server until the first token of this request has come.

    It is asked every 10 ms: servers refuse connections or answer 503 until they can serve.
    Raises RuntimeError if the server ends.
    """
    begun = time.perf_counter()
    with started(command) as process:
        while process.poll() is None:
            try:
                (timed,) = stream_all(port, [body])
            except (OSError, RuntimeError):
                time.sleep(0.01)
            else:
                return timed.first - begun
    message = f"the server ended with status {process.returncode}"
    raise RuntimeError(message)


def _completion_tokens(stream: bytes) -> int:
    """What the last chunk of a whole stream counts."""
    usage = stream.rsplit(b'"completion_tokens":', 1)
    if len(usage) != 2 or b"data: [DONE]" not in stream:
        raise RuntimeError(f"a stream broke: {stream[-300:]!r}")
    return int(usage[1].split(b",", 1)[0])
