"""Server-sent events: chunks in, frames out. All chunks of a pull go out in one send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from starlette.types import Scope, Send

from afterword.core import wire
from afterword.http.client import ClientDisconnected
from afterword.http.errors import error_event
from afterword.http.exchange import BODY_WRITER, BodyWriter, exchange_of
from afterword.http.frames import frame

_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"


class EventStream:
    """One streamed answer, except for its last frame.

    Sends the headers at once, then frames as chunks come, and a comment after ``keep_alive_s``
    seconds of silence (S7). Tokens do not set the timer. When it fires, it looks back, and is set
    again for the rest of the silence. ``write`` makes frames of chunks. A ``Sink`` for chunks that
    come while the next ones are waited for, if the server has a ``BodyWriter``.
    """

    def __init__(
        self,
        scope: Scope,
        send: Send,
        write: Callable[[Sequence[wire.Chunk]], bytes],
        *,
        keep_alive_s: float,
    ) -> None:
        self._scope = scope
        self._exchange = exchange_of(scope)
        self._send = send
        self._write = write
        self._writer: BodyWriter | None = scope.get(BODY_WRITER)
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._sending = False
        self._comment: asyncio.Task[None] | None = None

    def is_free(self) -> bool:
        """See ``Sink``."""
        return self._writer is not None and self._writer.is_free()

    def send(self, chunk: wire.Chunk) -> None:
        """See ``Sink``."""
        body = self._write((chunk,))
        if body and self._writer is not None:
            self._writer.write_part(body)
            self._last_sent_s = self._loop.time()

    async def run(self, chunks: AsyncIterator[list[wire.Chunk]], end: bytes) -> bytes:
        """Send the frames of all chunks.

        Returns the last frame, which the caller sends. It is ``end``, or the error event of what
        the iterator raised (S6). The last frame ends the exchange, so the caller sends it when
        nothing watches the client any more.
        """
        start = {"type": "http.response.start", "status": 200, "headers": list(_HEADERS)}
        await self._send(start)
        self._last_sent_s = self._loop.time()
        self._timer = self._loop.call_later(self._keep_alive_s, self._look_back)
        try:
            last = await self._run(chunks, end)
            if self._comment is not None:
                await self._comment
        finally:
            self._timer.cancel()
            if self._comment is not None:
                self._comment.cancel()
        return last

    async def _run(self, chunks: AsyncIterator[list[wire.Chunk]], end: bytes) -> bytes:
        send, write, now_s = self._send, self._write, self._loop.time
        try:
            async for pulled in chunks:
                # Only one send at a time: frames wait for a comment that is being sent.
                if self._comment is not None:
                    await self._comment
                body = write(pulled)
                if not body:
                    continue
                self._sending = True
                await send({"type": "http.response.body", "body": body, "more_body": True})
                self._sending = False
                self._last_sent_s = now_s()
        except ClientDisconnected:
            raise
        except Exception as error:  # noqa: BLE001 - the status is sent, so a failure is an event
            return error_event(error, self._scope, self._exchange)
        self._exchange.outcome = "answered"
        return end

    def _look_back(self) -> None:
        """Send a comment if the silence is long enough, and set the timer again."""
        now_s = self._loop.time()
        if now_s >= self._last_sent_s + self._keep_alive_s:
            # More bytes do not help a client that does not read.
            if not self._sending and self._comment is None:
                self._comment = asyncio.create_task(self._send_comment())
            self._last_sent_s = now_s
        self._timer = self._loop.call_at(self._last_sent_s + self._keep_alive_s, self._look_back)

    async def _send_comment(self) -> None:
        message = {"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True}
        try:
            await self._send(message)
        except ClientDisconnected:
            # The next frame, or the watch on the client, ends the stream.
            return
        self._comment = None


def frames(chunks: Sequence[wire.Chunk]) -> bytes:
    """Returns one ``data:`` line for each chunk (S1)."""
    return b"".join(map(frame, chunks))
