"""Clients that cost little: they share two cores with the server that they measure."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec


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


def stream_all(port: int, bodies: Sequence[Mapping[str, Any]]) -> list[Timed]:
    """Send all requests at once and read their streams to the end.

    Tokens are counted by the usage of the last chunk, so ``include_usage`` must be asked.
    """
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
        for key, _ in selector.select():
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
    for i, data in enumerate(received):
        usage = data.rsplit(b'"completion_tokens":', 1)
        if len(usage) != 2 or b"data: [DONE]" not in data:
            raise RuntimeError(f"a stream broke: {bytes(data[-300:])!r}")
        timed[i].tokens = int(usage[1].split(b",", 1)[0])
    return timed
