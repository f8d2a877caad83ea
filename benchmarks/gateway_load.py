"""Keeps streams open against a server, and prints their figures as JSON.

Usage: gateway_load.py PORT REQUESTS STREAMS TOKENS PACE. A stream that ends is replaced by the
next one. Starts are spread over the first two seconds.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from typing import Any

import tests_path  # noqa: F401 - where support is
from support.load import request_bytes

_SPREAD_S = 2.0


def main(port: int, requests: int, streams: int, tokens: int, pace: int) -> dict[str, Any]:
    """Run all requests, and return the figures."""
    # The stub takes the pace from the prompt's length.
    body = {"model": "stub", "prompt": "a" * (pace + 1), "max_tokens": tokens, "temperature": 0,
            "stream": True}  # fmt: skip
    request = request_bytes(port, body)
    selector = selectors.DefaultSelector()
    first_ms: list[float] = []
    begun = ended = 0
    started = time.perf_counter()
    due = [started + _SPREAD_S * i / streams for i in range(streams)]
    began: dict[int, float] = {}
    tails: dict[int, bytes] = {}
    while ended < requests:
        now = time.perf_counter()
        while due and due[0] <= now and begun < requests:
            due.pop(0)
            connection = socket.create_connection(("127.0.0.1", port))
            began[connection.fileno()] = time.perf_counter()
            tails[connection.fileno()] = b""
            connection.sendall(request)
            selector.register(connection, selectors.EVENT_READ)
            begun += 1
        wait_s = max(due[0] - now, 0) if due and begun < requests else None
        for key, _ in selector.select(wait_s):
            connection = key.fileobj  # type: ignore[assignment] # what was registered
            number = key.fd
            part = connection.recv(1 << 16)
            if number in began and b"data: {" in part:
                first_ms.append((time.perf_counter() - began.pop(number)) * 1000)
            tails[number] = (tails[number] + part)[-40:]
            if b"[DONE]" not in tails[number]:
                if part:
                    continue
                raise RuntimeError("a stream broke")
            selector.unregister(connection)
            connection.close()
            del tails[number]
            ended += 1
            due.append(time.perf_counter())
    took_s = time.perf_counter() - started
    made = requests * tokens
    return {"tokens": made, "tokens_per_s": made / took_s, "cpu_us_per_token": 0.0,
            "first_ms": first_ms}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
