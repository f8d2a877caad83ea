"""An HTTP client for one upstream: opens connections, keeps idle ones, exchanges whole answers."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import ExitStack
from functools import partial

from afterword.gateway.address import Address
from afterword.gateway.failures import ConnectFailed, Silent, StreamBroke
from afterword.gateway.transport.connection import Connection, Head
from afterword.gateway.transport.dial import dial
from afterword.gateway.transport.rounds import ReadingRounds

_MOST_IDLE = 64
_MOST_IDLE_S = 45.0
"""Balancers and firewalls forget idle connections, some after a minute, and tell nobody."""
_MOST_WHOLE_BYTES = 64 * 1024 * 1024


class HttpClient:
    """Connections to one upstream. Keeps at most 64 idle ones.

    ``key`` is sent in a header and appears nowhere else. ``connect_s`` limits the time in which a
    connection must open. ``rounds`` read the streams; without them the loop does.
    """

    def __init__(
        self,
        address: Address,
        *,
        key: str | None,
        connect_s: float,
        rounds: ReadingRounds | None = None,
    ) -> None:
        self._address = address
        self._connect_s = connect_s
        self._tls = ssl.create_default_context() if address.tls else None
        self._open = partial(Connection, rounds)
        self._idle: list[tuple[Connection, float]] = []
        self._closed = False
        lines = [f"host: {address.authority}", "user-agent: afterword", "accept: */*",
                 "accept-encoding: identity"]  # fmt: skip
        if key is not None:
            lines.append(f"authorization: Bearer {key}")
        self._lines = "\r\n".join(lines)

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Returns the bytes of a request."""
        lines = f"{method} {path} HTTP/1.1\r\n{self._lines}\r\n"
        if body is None:
            return f"{lines}\r\n".encode()
        kind = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        return f"{lines}{kind}".encode() + body

    def take_idle(self) -> Connection | None:
        """Returns an idle connection, or None. The upstream may have closed it meanwhile."""
        oldest_s = asyncio.get_running_loop().time() - _MOST_IDLE_S
        while self._idle:
            connection, since_s = self._idle.pop()
            if connection.reusable and since_s >= oldest_s:
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        """Returns a new connection. Raises ``ConnectFailed``."""
        loop = asyncio.get_running_loop()
        address = self._address
        try:
            async with asyncio.timeout(self._connect_s):
                dialled = await dial(address.host, address.port)
                with ExitStack() as failed:
                    failed.callback(dialled.close)
                    _, connection = await loop.create_connection(
                        self._open,
                        sock=dialled,
                        ssl=self._tls,
                        server_hostname=address.host if self._tls else None,
                    )
                    failed.pop_all()
        except TimeoutError:
            raise ConnectFailed(f"no connection within {self._connect_s:g} s") from None
        except ssl.SSLCertVerificationError as error:
            why = error.verify_message.rstrip(".")
            raise ConnectFailed(f"its certificate is not accepted: {why}") from None
        except ssl.SSLError as error:
            raise ConnectFailed(f"TLS failed: {error.reason}") from None
        except OSError as error:
            # Some errors of name resolution have no text.
            reason = error.strerror if error.errno and error.strerror else "it cannot be reached"
            raise ConnectFailed(reason.lower()) from None
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next exchange if it is reusable; close it otherwise."""
        if connection.reusable and not self._closed and len(self._idle) < _MOST_IDLE:
            self._idle.append((connection, asyncio.get_running_loop().time()))
        else:
            connection.abort()

    async def exchange(
        self, method: str, path: str, body: bytes | None = None, *, timeout_s: float
    ) -> tuple[Head, bytes]:
        """Returns a whole answer. Raises ``ConnectFailed`` and ``StreamBroke``."""
        request = self.request(method, path, body)
        used = self.take_idle()
        if used is not None:
            try:
                return await self._exchange(used, request, timeout_s)
            except StreamBroke as failure:
                if not is_closed_while_idle(used, failure):
                    raise
        return await self._exchange(await self.connect(), request, timeout_s)

    async def _exchange(
        self, connection: Connection, request: bytes, timeout_s: float
    ) -> tuple[Head, bytes]:
        whole = _Whole()
        try:
            async with asyncio.timeout(timeout_s):
                connection.send(request, whole)
                answer = await whole.done
        except TimeoutError:
            raise Silent(f"no answer within {timeout_s:g} s") from None
        finally:
            if whole.is_complete:
                self.give_back(connection)
            else:
                connection.abort()
        return answer

    def close(self) -> None:
        """Close idle connections now, and others when they are given back."""
        self._closed = True
        while self._idle:
            connection, _ = self._idle.pop()
            connection.abort()


def is_closed_while_idle(used: Connection, failure: StreamBroke) -> bool:
    """Returns whether an exchange may be tried again, because it met the end of an idle connection.

    Upstreams may close these, which is no fault. After a silence the time of the exchange is over.
    """
    return not used.answered and not isinstance(failure, Silent)


class _Whole:
    """A ``Receiver`` that collects a whole answer."""

    def __init__(self) -> None:
        self.done: asyncio.Future[tuple[Head, bytes]]
        self.done = asyncio.get_running_loop().create_future()
        self._head: Head | None = None
        self._parts: list[bytes] = []
        self._size_bytes = 0

    @property
    def is_complete(self) -> bool:
        """Whether all of it has come. The rest of another would be read as the next answer."""
        done = self.done
        return done.done() and not done.cancelled() and done.exception() is None

    def head(self, head: Head) -> None:
        self._head = head

    def body(self, received: bytes) -> None:
        self._size_bytes += len(received)
        if self._size_bytes > _MOST_WHOLE_BYTES:
            self.end(StreamBroke("its answer is too long"))
        else:
            self._parts.append(received)

    def end(self, error: StreamBroke | None) -> None:
        if self.done.done():
            return
        if error is not None or self._head is None:
            self.done.set_exception(error or StreamBroke("its answer has no head"))
        else:
            self.done.set_result((self._head, b"".join(self._parts)))
