"""The head of a request: its first line and its headers, however they are cut into packets."""

from __future__ import annotations

import re
from urllib.parse import unquote

import httptools
import msgspec

from afterword.core.errors import HeadersTooLarge, UnreadableRequest

MOST_HEAD_BYTES = 65_536
"""Of a head and, together with it, of trailers and the extensions of chunks."""
_END = b"\r\n\r\n"
_PROTOCOLS = frozenset({b"HTTP/1.0", b"HTTP/1.1"})
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
_SHOWN_BYTES = 20


class RequestHead(msgspec.Struct, frozen=True):
    """A head that was read. Names of headers are in lower case.

    ``length_bytes`` is the length of the body, None for a chunked one. ``size_bytes`` is that of
    the head itself.
    """

    method: str
    path: str
    raw_path: bytes
    query: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    length_bytes: int | None
    keep_alive: bool
    expects_continue: bool
    size_bytes: int


class HeadReader:
    """Reads one head. llhttp, the parser of Node.js, parses it in its strict mode.

    ``begun``: a byte of the head has arrived. Empty lines before a request are no part of it.
    """

    def __init__(self) -> None:
        self.begun = False
        self.method = "?"
        self._parser = httptools.HttpRequestParser(self)
        self._size_bytes = 0
        self._last = b""
        self._line = b""
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._read = False

    def feed(self, data: bytes) -> tuple[RequestHead | None, bytes]:
        """Returns the head, if it is complete, and the bytes that follow.

        Raises ``UnreadableRequest`` or ``HeadersTooLarge``. Then the connection has to end.
        """
        if not self.begun:
            arrived = len(data)
            data = data.lstrip(b"\r\n")
            self._size_bytes += arrived - len(data)
            self.begun = bool(data)
        seen = self._last + data
        end = seen.find(_END)
        part = data if end < 0 else data[: end + len(_END) - len(self._last)]
        self._last = seen[1 - len(_END) :]
        self._size_bytes += len(part)
        if b"\n" not in self._line:
            self._line += part
        if self._size_bytes > MOST_HEAD_BYTES:
            raise HeadersTooLarge(
                f"The first line and the headers are more than {MOST_HEAD_BYTES} bytes."
            )
        self._parse(part)
        if end < 0:
            return None, b""
        return self._head(), data[len(part) :]

    def on_url(self, url: bytes) -> None:
        """Called by the parser."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        # The parser leaves the blanks behind a value, which are no part of it (RFC 9110, 5.5).
        self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._read = True

    def _parse(self, part: bytes) -> None:
        try:
            self._parser.feed_data(part)
        except httptools.HttpParserUpgrade:
            # Offers of another protocol are ignored.
            return
        except httptools.HttpParserError as error:
            raise _unreadable(str(error)) from None

    def _head(self) -> RequestHead:
        # The parser knows other protocols, too, and does not say which one it has read.
        protocol = self._line.partition(b"\r\n")[0].rpartition(b" ")[2]
        if protocol not in _PROTOCOLS:
            shown = protocol[:_SHOWN_BYTES].decode("latin-1")
            raise _unreadable(f"{shown} is not spoken here, only HTTP/1.1")
        version = self._parser.get_http_version()
        if not self._read:
            raise _unreadable("the headers have no end")
        self.method = self._parser.get_method().decode("ascii")
        hosts = [value for name, value in self._headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            raise _unreadable("a request has one Host header")
        if not all(map(_HOST.fullmatch, hosts)):
            raise _unreadable("the Host header is no name of a host")
        authority, raw_path, query = _split(self._target)
        if authority:
            # The target's own host counts, not the header's (RFC 9112, 3.2.2).
            self._headers = [(n, authority if n == b"host" else v) for n, v in self._headers]
        path = raw_path.decode("ascii")
        return RequestHead(
            method=self.method,
            path=unquote(path) if "%" in path else path,
            raw_path=raw_path,
            query=query,
            version=version,
            headers=self._headers,
            length_bytes=_length_bytes(self._headers, version),
            keep_alive=version == "1.1" and not self._has(b"connection", b"close"),
            expects_continue=version == "1.1" and self._has(b"expect", b"100-continue"),
            size_bytes=self._size_bytes,
        )

    def _has(self, name: bytes, token: bytes) -> bool:
        values = b",".join(value for given, value in self._headers if given == name)
        return any(part.strip() == token for part in values.lower().split(b","))


def _split(target: bytes) -> tuple[bytes, bytes, bytes]:
    """Returns the host, the path and the query of a request's target.

    The host is empty unless the target is a whole URL. The path of a target that is neither a path
    nor a URL (``*``, ``host:port``) is the target.
    """
    bare, _, query = target.partition(b"#")[0].partition(b"?")
    scheme, separator, rest = bare.partition(b"://")
    if bare.startswith(b"/") or not separator or not scheme.isalpha():
        return b"", bare, query
    authority, slash, path = rest.partition(b"/")
    return authority.rpartition(b"@")[2], (slash + path) or b"/", query


def _length_bytes(headers: list[tuple[bytes, bytes]], version: str) -> int | None:
    """Returns the length of the body, None for a chunked one.

    The parser has refused several lengths, signs, and a length together with an encoding.
    """
    length_bytes: int | None = 0
    for name, value in headers:
        if name == b"content-length":
            # Zeros in front may be more digits than int() takes.
            length_bytes = int(value.strip().lstrip(b"0") or b"0")
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked" or version != "1.1":
                raise _unreadable("the only Transfer-Encoding is chunked, in HTTP/1.1")
            length_bytes = None
    return length_bytes


def _unreadable(reason: str) -> UnreadableRequest:
    return UnreadableRequest(f"The request could not be read as HTTP/1.1: {reason}.")
