"""One request to one upstream, from its connection to its last token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from afterword.core.job import Event
from afterword.gateway.dialects.dialect import Reader
from afterword.gateway.failures import StreamBroke, UpstreamFailure
from afterword.gateway.pool.pool import PoolOptions
from afterword.gateway.transport.api import failure_of
from afterword.gateway.transport.connection import Connection, Head, HttpClient
from afterword.gateway.transport.sse import EventSplitter, EventTooLongError

_DONE = b"[DONE]"
_LINGER_S = 2.0
"""The wait for the end of a stream after all its choices have ended."""
_MOST_ERROR_BYTES = 64 * 1024


class Attempt:
    """Receives one stream; calls ``emit`` with its events, in the event loop's callbacks.

    ``admitted`` is called when the upstream has accepted the request. ``produced`` is True after
    the first event: the request cannot be tried elsewhere any more. Tokens set no timers: the
    one timer checks the time of the last event when it fires.
    """

    def __init__(
        self,
        client: HttpClient,
        request: bytes,
        reader: Reader,
        *,
        options: PoolOptions,
        emit: Callable[[list[Event]], None],
        admitted: Callable[[], None],
    ) -> None:
        self.produced = False
        self._client = client
        self._request = request
        self._reader = reader
        self._options = options
        self._emit = emit
        self._admitted = admitted
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._renew()

    def _renew(self) -> None:
        self._ended = self._loop.create_future()
        self._splitter = EventSplitter()
        self._head: Head | None = None
        self._error_body = b""
        self._done = False
        self._whole = False

    async def run(self) -> None:
        """Returns when every sequence has ended. Raises ``UpstreamFailure``."""
        used = self._client.take_idle()
        if used is not None:
            try:
                await self._run_on(used)
            except StreamBroke:
                # The upstream may close idle connections: a failure without an answer is no fault.
                if used.answered:
                    raise
                self._renew()
            else:
                return
        await self._run_on(await self._client.connect())

    async def _run_on(self, connection: Connection) -> None:
        self._connection = connection
        self._heard_s = self._loop.time()
        self._timer = self._loop.call_later(self._limit_s(), self._look_back)
        try:
            connection.send(self._request, self)
            await self._ended
        finally:
            self._timer.cancel()
            self._connection = None
            if self._whole:
                self._client.give_back(connection)
            else:
                connection.abort()

    def close(self, seq: int) -> None:
        """Drop everything that still comes for a sequence; abort after the last one."""
        self._reader.close(seq)
        if self._reader.over:
            self.abort()

    def abort(self) -> None:
        """Close the connection at once; ``run`` returns."""
        if self._connection is not None:
            self._connection.abort()
        self._finish()

    def head(self, head: Head) -> None:
        """See ``Receiver``."""
        self._head = head
        if head.status == 200:
            kind = head.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                self._fail(StreamBroke("it answered with something other than a stream of events"))
                return
            self._admitted()

    def body(self, received: bytes) -> None:
        """See ``Receiver``."""
        if self._head is None or self._head.status != 200:
            self._error_body = (self._error_body + received)[:_MOST_ERROR_BYTES]
            return
        if self._ended.done():
            return
        try:
            self._read(received)
        except EventTooLongError:
            self._fail(StreamBroke("it sent an event that never ends"))
        except Exception as error:  # noqa: BLE001 - any error ends this request
            self._fail(error)

    def end(self, error: StreamBroke | None) -> None:
        """See ``Receiver``."""
        if self._ended.done():
            return
        if error is not None:
            if self._done or self._reader.over:
                self._finish()  # only the end of the answer is missing
            else:
                self._fail(error)
            return
        self._whole = True
        if self._head is not None and self._head.status != 200:
            self._fail(failure_of(self._head, self._error_body))
            return
        if not self._done:
            try:
                self._give(self._reader.done())
            except UpstreamFailure as failure:
                self._fail(failure)
                return
        self._finish()

    def _read(self, received: bytes) -> None:
        payloads = self._splitter.feed(received)
        if not payloads:
            return
        events: list[Event] = []
        try:
            for payload in payloads:
                if payload == _DONE:
                    self._done = True
                    events += self._reader.done()
                elif not self._done:
                    events += self._reader.read(payload)
        finally:
            # Events before a broken one are valid.
            self._give(events)

    def _give(self, events: list[Event]) -> None:
        if events:
            self._heard_s = self._loop.time()
            self.produced = True
            self._emit(events)
            if self._reader.over:
                self._timer.cancel()
                self._timer = self._loop.call_later(_LINGER_S, self._finish)

    def _limit_s(self) -> float:
        return self._options.silence_s if self.produced else self._options.first_token_s

    def _look_back(self) -> None:
        limit_s = self._limit_s()
        due_s = self._heard_s + limit_s
        if self._loop.time() >= due_s:
            what = "no further token" if self.produced else "no token"
            self._fail(StreamBroke(f"{what} within {limit_s:g} s"))
        else:
            self._timer = self._loop.call_at(due_s, self._look_back)

    def _finish(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)
