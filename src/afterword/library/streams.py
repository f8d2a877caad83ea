"""Streams of chunks, for threads and for event loops."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Self

from afterword.core.errors import EngineUnavailable
from afterword.library.answers import TextChunk
from afterword.library.backend import ChunkSource
from afterword.library.calls import Calls
from afterword.library.fields import CompletionFields, PromptInput
from afterword.library.session import Session


class OpenedStream:
    """A running request. Dropping it ends the request at the next step (S8)."""

    def __init__(self, session: Session, source: ChunkSource) -> None:
        self._session = session
        self._source: ChunkSource | None = source
        self._chunks: deque[TextChunk] = deque()

    @classmethod
    async def begun(
        cls, session: Session, calls: Calls, prompt: PromptInput, fields: CompletionFields
    ) -> Self:
        """Returns an admitted stream. Runs in the session's loop.

        So a caller who is interrupted while it arrives drops it, which ends the request.
        """
        return cls(session, await calls.open(prompt, fields))

    def _end(self) -> None:
        """Have the request end, without waiting for it. Idempotent."""
        source, self._source = self._source, None
        if source is not None:
            # A session that is closed has ended it.
            with suppress(EngineUnavailable):
                self._session.submit(source.close())

    def __del__(self) -> None:
        self._end()


class TextStream(OpenedStream):
    """The chunks of one request, as an iterator and a context manager.

    Closing or dropping it ends the request at the next step (S8). One thread reads it; any thread
    may close it, which is its end for the reader.
    """

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TextChunk:
        """Returns the next chunk. Raises ``ApiError`` if the request fails."""
        while not self._chunks:
            # Another thread may close it at any time.
            source = self._source
            if source is None:
                raise StopIteration
            try:
                pulled = self._session.wait(source.pull())
            except BaseException:
                self._end()
                raise
            self._chunks += pulled
            if not pulled:
                self._end()
        return self._chunks.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def close(self) -> None:
        """End the request, if it runs. Idempotent."""
        self._end()


class AsyncTextStream(OpenedStream):
    """The chunks of one request, as an async iterator and an async context manager.

    Closing or dropping it, or cancelling the task that reads it, ends the request at the next step
    (S8).
    """

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TextChunk:
        """Returns the next chunk. Raises ``ApiError`` if the request fails."""
        while not self._chunks:
            source = self._source
            if source is None:
                raise StopAsyncIteration
            try:
                pulled = await self._session.awaited(source.pull())
            except BaseException:
                self._end()
                raise
            self._chunks += pulled
            if not pulled:
                self._end()
        return self._chunks.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    async def aclose(self) -> None:
        """End the request, if it runs. Idempotent."""
        self._end()
