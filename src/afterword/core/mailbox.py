"""Between engine and reader: the events since the reader last looked, merged.

A reader that lags finds one list, with one ``Sampled`` for each sequence. A waiting token takes
four bytes, or twelve and more with log-probabilities. The engine does not wait for the reader.
A reader that waits may leave a shortcut, because to wake it costs more than most events do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from afterword.core.job import Event, Sampled


class Mailbox:
    """The events of one generation. It lives on the event loop's thread.

    ``shortcut`` is offered new events while the reader waits. It returns whether it took them; what
    it raises ends the mailbox. Invariant: ``_last`` holds each sequence's pending ``Sampled``,
    which may still grow.
    """

    def __init__(self) -> None:
        self.shortcut: Callable[[list[Event]], bool] | None = None
        self._pending: list[Event] = []
        self._last: dict[tuple[int, int], Sampled] = {}
        self._error: Exception | None = None
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def put(self, events: list[Event]) -> None:
        """Add events in order. From then on the mailbox owns them and their arrays."""
        if not events:
            return
        waiter, shortcut = self._waiter, self.shortcut
        if shortcut is not None and waiter is not None and not waiter.done():
            try:
                if shortcut(events):
                    return
            except Exception as error:  # noqa: BLE001 - raised to the reader
                self.close(error)
                return
        for event in events:
            if isinstance(event, Sampled):
                key = (event.job, event.seq)
                last = self._last.get(key)
                if last is not None:
                    last.tokens.extend(event.tokens)
                    last.logprobs.extend(event.logprobs)
                    last.top_ids.extend(event.top_ids)
                    last.top_logprobs.extend(event.top_logprobs)
                    continue
                self._last[key] = event
            self._pending.append(event)
        self._wake()

    def close(self, error: Exception | None = None) -> None:
        """End the mailbox. After the pending events ``take`` raises the ``error``, if any."""
        if not self._closed:
            self._closed = True
            self._error = error
            self._wake()

    async def take(self) -> list[Event]:
        """Returns all pending events. Waits for the first; returns ``[]`` after the end.

        Raises the error that ended the generation, if there was one.
        """
        while not self._pending:
            if self._closed:
                if self._error is not None:
                    raise self._error
                return []
            # Looked up once, because each lookup costs a system call.
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        pending, self._pending = self._pending, []
        self._last.clear()
        return pending

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class MailboxReader:
    """The part that generations with a mailbox share: an iterator of lists of events."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    def shorten(self, shortcut: Callable[[list[Event]], bool] | None) -> None:
        """See ``core.protocols.Generation``."""
        self._mailbox.shortcut = shortcut

    def __aiter__(self) -> Self:
        """Iterate over lists of events."""
        return self

    async def __anext__(self) -> list[Event]:
        """Returns all events since the last call."""
        events = await self._mailbox.take()
        if not events:
            raise StopAsyncIteration
        return events
