"""A stand-in for the model hub: serves files by the hub's rules, and can break off."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Files by their path below ``/ORG/REPO/resolve/main/``, at the commit ``COMMIT``.

    ``digests`` overrides the digests of files. The connection closes once, after ``break_after``
    bytes of a body. ``ranges`` lists the ``Range`` headers of all requests, ``listings`` counts how
    often the files of ``org/repo`` were listed. With ``elsewhere``, the address of another server,
    bodies are there, as the hub's are on other hosts. ``tokens`` has the ``Authorization`` header
    of each request for a file.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    break_after: int | None = None
    ranges: list[str | None] = field(default_factory=list)
    listings: int = 0
    elsewhere: str = ""
    tokens: list[str | None] = field(default_factory=list)
    url: str = ""

    def digest_of(self, name: str) -> str:
        """The SHA-256 that the hub gives for a file."""
        return self.digests.get(name) or hashlib.sha256(self.files[name]).hexdigest()

    def range_of(self, exchange: BaseHTTPRequestHandler) -> str | None:
        """The ``Range`` header of a request for a body."""
        wanted = exchange.headers.get("Range")
        self.ranges.append(wanted)
        return wanted

    def listing(self) -> bytes:
        """The files of ``org/repo``, as the hub's API lists them."""
        self.listings += 1
        listed = [
            {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
            for name, data in self.files.items()
        ]
        return json.dumps(listed).encode()


def _start_of(wanted: str | None) -> int:
    """The first byte of a ``Range`` header."""
    return int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0


def _listed(exchange: BaseHTTPRequestHandler, hub: Hub) -> bool:
    """Answer a request for the list of files. Returns whether it was one."""
    if not exchange.path.startswith("/api/models/org/repo/tree/"):
        return False
    body = hub.listing()
    exchange.send_response(200)
    exchange.send_header("Content-Type", "application/json")
    exchange.send_header("Content-Length", str(len(body)))
    exchange.end_headers()
    exchange.wfile.write(body)
    return True


def _describe(
    exchange: BaseHTTPRequestHandler, hub: Hub, name: str, *, start: int, part: bool
) -> None:
    """Send the status and the headers of a file, or of its part from the byte ``start`` on."""
    size, digest = len(hub.files[name]), hub.digest_of(name)
    exchange.send_response(302 if hub.elsewhere else 206 if part else 200)
    if hub.elsewhere:
        exchange.send_header("Location", f"{hub.elsewhere}{exchange.path}")
    if part:
        exchange.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
    exchange.send_header("Content-Length", str(size - start))
    exchange.send_header("ETag", f'"{digest}"')
    exchange.send_header("X-Linked-ETag", f'"{digest}"')
    exchange.send_header("X-Linked-Size", str(size))
    exchange.send_header("X-Repo-Commit", COMMIT)
    exchange.send_header("Accept-Ranges", "bytes")
    exchange.end_headers()


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Serve until the block ends."""

    class Exchange(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited
            return

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            if _listed(self, hub):
                return
            path = self.path.split("?")[0].replace(f"/resolve/{COMMIT}/", "/resolve/main/")
            name = path.partition("/resolve/main/")[2]
            data = hub.files.get(name)
            if data is None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                return
            hub.tokens.append(self.headers.get("Authorization"))
            wanted = hub.range_of(self) if with_body else None
            start = _start_of(wanted)
            _describe(self, hub, name, start=start, part=wanted is not None)
            if not with_body:
                return
            if hub.break_after is not None:
                self.wfile.write(data[start : start + hub.break_after])
                hub.break_after = None
                self.close_connection = True
                return
            self.wfile.write(data[start:])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Exchange)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
