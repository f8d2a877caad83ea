"""The client's side of an exchange: reads its body, answers it, notices that it has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from starlette.types import Receive, Scope, Send

from afterword.core.errors import BodyTooLarge, UnsupportedEncoding
from afterword.http.query import AZURES_VERSION, check_query
from afterword.http.uploads import Upload

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ClientDisconnected(Exception):
    """The client has gone."""


async def read_body(
    scope: Scope, receive: Receive, limit_bytes: int, upload: Upload | None = None
) -> bytes:
    """Returns the whole body, without a byte order mark (H14). ``upload`` counts what is there.

    Raises ``InvalidRequest`` for a query, because all parameters are in the body, and
    ``UnsupportedEncoding`` for a compressed body. Raises ``BodyTooLarge`` if the declared length is
    over the limit, before anything is read (a client that waits for ``100 Continue`` then sends
    nothing), or if more than the limit arrives. Raises ``ClientDisconnected`` if the client leaves.
    """
    check_query(scope, AZURES_VERSION)
    for name, value in scope["headers"]:
        if name == b"content-encoding":
            _check_encoding(value)
        if name == b"content-length" and _is_above(value, limit_bytes):
            raise _too_large(limit_bytes)
    parts: list[bytes] = []
    size_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        part: bytes = message.get("body", b"")
        size_bytes += len(part)
        if size_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        if upload is not None:
            upload.grow(size_bytes, limit_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            return body.removeprefix(_BYTE_ORDER_MARK)


def _is_above(length: bytes, limit_bytes: int) -> bool:
    """Whether a declared length is above a limit, however many digits it has."""
    digits = length.strip().lstrip(b"0")
    if not digits.isdigit():
        return False
    return len(digits) > len(str(limit_bytes)) or int(digits) > limit_bytes


def _check_encoding(value: bytes) -> None:
    if {each.strip().lower() for each in value.split(b",")} - {b"", b"identity"}:
        shown = value[:40].decode("latin-1")
        raise UnsupportedEncoding(
            f"Content-Encoding: {shown} is not supported. Send the body uncompressed, without this "
            "header."
        )


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than the limit of {limit_bytes} bytes.")


async def send_whole(
    send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], *parts: bytes
) -> None:
    """Send an answer whose length is known, part by part."""
    length = (b"content-length", b"%d" % sum(map(len, parts)))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    for number, part in enumerate(parts, 1):
        more = number < len(parts)
        await send({"type": "http.response.body", "body": part, "more_body": more})


class ClientWatch:
    """Cancels the work inside its block when the client goes away (S8).

    The body must have been read before. If the client goes, the block ends silently and ``gone``
    is True. A cancellation from elsewhere passes through.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.gone = False

    async def __aenter__(self) -> Self:
        """Start to watch."""
        work = asyncio.current_task()
        if work is None:
            raise RuntimeError("a client can only be watched in a task")
        self._work = work
        self._cancelling = work.cancelling()
        self._watch = asyncio.create_task(self._run())
        return self

    # Awaits nothing, so a cancellation by the watch always arrives inside the block.
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Stop to watch. Swallow the cancellation that the watch asked for, and no other."""
        self._watch.cancel()
        if not self.gone:
            return False
        others = self._work.uncancel() > self._cancelling
        return exc_type is asyncio.CancelledError and not others

    async def _run(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._work.cancel()
