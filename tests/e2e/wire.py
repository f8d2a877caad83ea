"""Streams over plain sockets, which a test reads when it wants."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any


class Stream:
    """One streamed completion on a connection of its own."""

    def __init__(
        self,
        port: int,
        body: dict[str, Any],
        *,
        receive_bytes: int | None = None,
        key: str | None = None,
    ) -> None:
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        payload = json.dumps({**body, "stream": True}).encode()
        bearer = "" if key is None else f"Authorization: Bearer {key}\r\n"
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"{bearer}Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        )
        try:
            self.socket.connect(("127.0.0.1", port))
            self.socket.sendall(head.encode() + payload)
        except OSError:
            self.socket.close()
            raise
        self._reader = self.socket.makefile("rb")

    def frames(self) -> Iterator[str]:
        """Yields the payloads of the events as they come, up to the end of the connection."""
        for line in self._reader:
            if line.startswith(b"data: "):
                yield line[6:].decode().rstrip()

    def text(self) -> str:
        """Read to the end, which must be ``[DONE]``. Returns the whole text."""
        *chunks, last = self.frames()
        assert last == "[DONE]", last
        return "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks)

    def close(self) -> None:
        self._reader.close()
        self.socket.close()
