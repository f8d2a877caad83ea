"""One request to one upstream, from its connection to its last token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeAlias

from afterword.core.job import Ended, Event, Sampled
from afterword.gateway.dialects.dialect import Reader
from afterword.gateway.failures import Silent, StreamBroke, UpstreamFailure
from afterword.gateway.long_payload import LONG_BYTES, LongPayload
from afterword.gateway.pool.attempt_limits import AttemptLimits
from afterword.gateway.transport.api import failure_of, failure_of_event
from afterword.gateway.transport.client import HttpClient, is_closed_while_idle
from afterword.gateway.transport.connection import Connection, Head
from afterword.gateway.transport.sse import (
    BOM,
    ErrorPayload,
    EventSplitter,
    EventTooLongError,
    Payload,
)

_Kind: TypeAlias = Literal["unknown", "stream", "plain", "error", "held"]
_DONE = b"[DONE]"
_SHORT_BYTES = 32
"""Shorter than any chunk: only these may be blank or the end."""
_LINGER_S = 2.0
"""The wait for the end of a stream after all its choices have ended."""
_REFUSAL_S = 0.25
"""In which a server that answers 200 to everything says in its stream what it refuses (S6)."""
_MOMENT_S = 0.01
"""In which the loop polls all sockets at least once."""
_MOST_ERROR_BYTES = 64 * 1024
_MOST_BLANKS = 64 * 1024
_THREAD = ThreadPoolExecutor(1, "afterword-long-answers")
"""One for all: the loop would wait for each of several threads in turn."""


class _LongRead:
    """A payload that a thread reads, and what has come for the attempt meanwhile, in order."""

    def __init__(self, kind: _Kind, behind: Sequence[Payload]) -> None:
        self.kind = kind
        self.behind = behind
        self.parts: list[bytes] = []
        self.ended = False
        self.error: StreamBroke | None = None
        self.closed: list[int] = []


class Attempt:
    """Receives one answer; calls ``emit`` with its events, in the event loop's callbacks.

    A stream is requested, and a plain JSON answer is taken, too: the first byte tells, because
    servers label them wrongly. ``admitted`` is called when the upstream has accepted the request:
    with the first event, or a moment after a stream has begun.
    ``produced`` is True after the first event: the request cannot be tried elsewhere any more.
    Tokens set no timers: the one timer checks the time of the last event when it fires.
    Invariant: while there is a ``_LongRead``, a thread has the reader and nothing else uses it,
    the body is of kind "held", and the connection reads nothing.
    """

    def __init__(
        self,
        client: HttpClient,
        request: bytes,
        reader: Reader,
        *,
        limits: AttemptLimits,
        emit: Callable[[list[Event]], None],
        admitted: Callable[[], None],
    ) -> None:
        self.produced = False
        self._client = client
        self._request = request
        self._reader = reader
        self._limits = limits
        self.emit = emit
        self._admitted = admitted
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._renew()

    def _renew(self) -> None:
        self._ended = self._loop.create_future()
        self._splitter = EventSplitter(self._limits.event_bytes)
        self._head: Head | None = None
        self._buffer = bytearray()
        self._kind: _Kind = "unknown"
        self._done = False
        self._counted = False
        self._lingers = False
        self._whole = False
        self._overdue_s = 0.0
        self._acceptance: asyncio.TimerHandle | None = None
        self._long: _LongRead | None = None

    @property
    def remarks(self) -> Mapping[str, str]:
        """What was odd in the answer; see ``Reader``."""
        # A copy: after an abort a thread may still add to them.
        return dict(self._reader.remarks)

    async def run(self) -> None:
        """Returns when every sequence has ended. Raises ``UpstreamFailure``."""
        used = self._client.take_idle()
        if used is not None:
            try:
                await self._run_on(used)
            except StreamBroke as failure:
                if not is_closed_while_idle(used, failure):
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
            if self._acceptance is not None:
                self._acceptance.cancel()
            self._connection = None
            if self._whole:
                self._client.give_back(connection)
            else:
                connection.abort()

    def close(self, seq: int) -> None:
        """Drop everything that still comes for a sequence; abort after the last one."""
        if self._long is not None:
            self._long.closed.append(seq)
            return
        self._reader.close(seq)
        if self._reader.over and not self._ended.done():
            self._conclude(said=False)
            self.abort()

    def abort(self) -> None:
        """Close the connection at once; ``run`` returns."""
        if self._connection is not None:
            self._connection.abort()
        self._finish()

    def head(self, head: Head) -> None:
        """See ``Receiver``."""
        self._head = head
        if head.status != 200:
            self._kind = "error"
        elif head.headers.get("content-type", "").startswith("text/event-stream"):
            self._begin_stream()

    def body(self, received: bytes) -> None:
        """See ``Receiver``."""
        if self._ended.done():
            return
        try:
            if self._kind == "stream":
                self._read(received)
            else:
                self._collect(received)
        except EventTooLongError:
            self._fail(StreamBroke("it sent an event that never ends"))
        except Exception as error:  # noqa: BLE001 - any error ends this request
            self._broke(error)

    def end(self, error: StreamBroke | None) -> None:
        """See ``Receiver``."""
        if self._ended.done():
            return
        if self._long is not None:
            self._long.ended, self._long.error = True, error
            return
        if error is not None:
            if self._done or self._reader.over:
                self._conclude(said=self._done)  # only the end of the answer is missing
            else:
                self._fail(error)
            return
        self._whole = True
        try:
            if self._head is not None and self._head.status != 200:
                raise failure_of(self._head, bytes(self._buffer))  # noqa: TRY301 - any way it ends
            self._end_of_body()
        except Exception as failure:  # noqa: BLE001 - any error ends this request
            self._broke(failure)
        else:
            if self._long is not None:
                self._long.ended = True
            else:
                self._conclude(said=self._done)

    def _collect(self, received: bytes) -> None:
        """Keep a part of a plain answer or an error, or find out what the answer is."""
        if self._long is not None:
            self._long.parts.append(received)
            return
        self._buffer += received
        size_bytes = len(self._buffer)
        if self._kind == "error" and size_bytes > _MOST_ERROR_BYTES and self._head is not None:
            raise failure_of(self._head, b"")
        if size_bytes > self._limits.event_bytes:
            raise EventTooLongError
        if self._kind == "unknown":
            self._sniff()

    def _sniff(self) -> None:
        """Find out the kind of a body from its first byte that is not blank."""
        whole = bytes(self._buffer)
        start = whole.removeprefix(BOM).lstrip()[:1]
        if not start and len(whole) > _MOST_BLANKS:
            raise StreamBroke("it sent an answer without an end")
        if start == b"<":
            raise StreamBroke("it answered with a page instead of a completion")
        if start and start in b"{[":
            self._kind = "plain"
        elif start and not BOM.startswith(whole):
            self._kind, self._buffer = "stream", bytearray()
            self._begin_stream()
            self._read(whole)

    def _begin_stream(self) -> None:
        if self._acceptance is None:
            self._acceptance = self._loop.call_later(_REFUSAL_S, self._admitted)

    def _end_of_body(self) -> None:
        """Read what only the end of the body completes: a plain answer, an event's last line."""
        if self._done:
            return
        if self._kind == "plain":
            if self._buffer.startswith(BOM):
                del self._buffer[: len(BOM)]
            self._plain()
        elif self._kind == "stream":
            self._events(self._splitter.flush())
        else:
            raise StreamBroke("its answer is empty")

    def _plain(self) -> None:
        if len(self._buffer) < LONG_BYTES:
            self._give(self._reader.read(bytes(self._buffer)))
            self._done = True
        else:
            self._begin_long(self._buffer, ())

    def _read(self, received: bytes) -> None:
        payloads = self._splitter.feed(received)
        first = payloads[0] if len(payloads) == 1 else b""
        if len(first) >= _SHORT_BYTES and first.__class__ is bytes and not self._done:
            self._give(self._reader.read(first))  # the same, for the most common case
        elif payloads:
            self._events(payloads)

    def _events(self, payloads: Sequence[Payload]) -> None:
        events: list[Event] = []
        long: int | None = None
        try:
            for at, payload in enumerate(payloads):
                if self._done:
                    break
                if isinstance(payload, ErrorPayload):
                    raise failure_of_event(payload)
                if len(payload) >= LONG_BYTES:
                    long = at
                    break
                short = payload.strip() if len(payload) < _SHORT_BYTES else payload
                if short == _DONE:
                    self._done = True
                elif short:
                    events += self._reader.read(bytes(payload))
        finally:
            # Events before a broken one are valid.
            self._give(events)
        if long is not None:
            self._begin_long(payloads[long], payloads[long + 1 :])
        elif self._done:
            self._count(said=True)

    def _begin_long(self, payload: Payload, behind: Sequence[Payload]) -> None:
        """Let a thread read a payload, unless the request has ended."""
        if self._ended.done():
            return
        self._long = _LongRead(self._kind, behind)
        self._kind = "held"
        if self._connection is not None:
            self._connection.hold()
        read = self._loop.run_in_executor(_THREAD, self._reader.read, LongPayload(payload))
        read.add_done_callback(self._end_long)

    def _end_long(self, read: asyncio.Future[list[Event]]) -> None:
        """Give what the thread has read, and go on with what came meanwhile."""
        long, self._long = self._long, None
        broken = None if read.cancelled() else read.exception()
        if self._ended.done() or read.cancelled() or long is None:
            return
        self._kind = long.kind
        self._heard_s = self._loop.time()  # the wait was not for the upstream
        if self._connection is not None:
            self._connection.release()
        for seq in long.closed:
            self.close(seq)
        if isinstance(broken, Exception):
            self._broke(broken)
        elif not self._ended.done():
            self._go_on(long, read.result())

    def _go_on(self, long: _LongRead, events: list[Event]) -> None:
        try:
            self._give([
                event for event in events
                if not isinstance(event, Sampled | Ended) or event.seq not in long.closed
            ])  # fmt: skip
            self._done = self._done or long.kind == "plain"
            self._events(long.behind)
        except Exception as error:  # noqa: BLE001 - any error ends this request
            self._broke(error)
        for part in long.parts:
            self.body(part)
        if long.ended:
            self.end(long.error)

    def _count(self, *, said: bool) -> None:
        """Give the events of the end, once."""
        if not self._counted:
            self._counted = True
            self._give(self._reader.done(said=said))

    def _conclude(self, *, said: bool) -> None:
        """End the request as well as its answer allows."""
        try:
            self._count(said=said)
        except Exception as failure:  # noqa: BLE001 - any error ends this request
            self._fail(failure)
        else:
            self._finish()

    def _give(self, events: list[Event]) -> None:
        if events:
            self._heard_s = self._loop.time()
            if not self.produced:
                self.produced = True
                self._admitted()
                if self._connection is not None:
                    self._connection.join_rounds()
            self.emit(events)
        if not self._lingers and (self._reader.over or self._done):
            self._lingers = True
            self._timer.cancel()
            self._timer = self._loop.call_later(_LINGER_S, self._conclude_late)

    def _broke(self, error: Exception) -> None:
        """End the request with an error, unless every sequence has ended before it."""
        if isinstance(error, UpstreamFailure) and self._reader.over:
            self._conclude(said=self._done)
        else:
            self._fail(error)

    def _conclude_late(self) -> None:
        if self._long is not None:
            self._timer = self._loop.call_later(_LINGER_S, self._conclude_late)
        else:
            self._conclude(said=self._done)

    def _limit_s(self) -> float:
        limits = self._limits
        return limits.silence_s if self.produced else limits.first_token_s

    def _look_back(self) -> None:
        limit_s = self._limit_s()
        if self._long is not None:
            self._heard_s = self._loop.time()
        due_s, now_s = self._heard_s + limit_s, self._loop.time()
        if now_s < due_s:
            self._timer = self._loop.call_at(due_s, self._look_back)
        elif due_s != self._overdue_s:
            # If the process stood still, what has come meanwhile is read first.
            self._overdue_s = due_s
            self._timer = self._loop.call_at(now_s + _MOMENT_S, self._look_back)
        else:
            what = "no further token" if self.produced else "no token"
            self._fail(Silent(f"{what} within {limit_s:g} s"))

    def _finish(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)
