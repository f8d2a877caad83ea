"""S7 and S8: what a stream sends and when, with its time in the test's hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from starlette.types import Message

from afterword.core import wire
from afterword.http import exchange as http
from afterword.http.client import ClientDisconnected
from afterword.http.stream import DONE, EventStream, frames
from support.asgi import Exchange

COMMENT = b": keep-alive\n\n"
CHUNK = wire.Chunk("cmpl-1", 1, "toy", [wire.Choice("a", 0, None, None)], "fp_0", None)
WITHOUT_CHOICES = wire.Chunk("cmpl-1", 1, "toy", [], "fp_0", None)
FRAME = frames([CHUNK])
NEVER_S = 1e9


def written(chunks: Sequence[wire.Chunk]) -> bytes:
    """Some shapes have no frame for some chunks."""
    return frames([chunk for chunk in chunks if chunk.choices])


class Streaming:
    """A stream of chunks that the test lets come, to a client that may not read."""

    def __init__(self, *, gone: bool = False) -> None:
        self.noted = http.Exchange(request_id="req_1", path="/", started_s=0.0)
        self._reads = asyncio.Event()
        self._reads.set()
        self.client = Exchange(blocked=self._reads)
        self.gone = gone
        self._chunks: asyncio.Queue[list[wire.Chunk]] = asyncio.Queue()
        scope = {http.BODY_WRITER: self.client}
        http.attach(scope, self.noted)
        self.stream = EventStream(scope, self._send, written, keep_alive_s=NEVER_S)
        self.run = asyncio.ensure_future(self.stream.run(self._pulled(), DONE))

    async def _send(self, message: Message) -> None:
        if self.gone and message["type"] == "http.response.body":
            raise ClientDisconnected
        await self.client.send(message)

    async def _pulled(self) -> AsyncIterator[list[wire.Chunk]]:
        while pulled := await self._chunks.get():
            yield pulled

    @property
    def bodies(self) -> list[bytes]:
        assert all(message.get("more_body", True) for message in self.client.sent)
        return [message["body"] for message in self.client.sent[1:]]

    async def come(self, *chunks: wire.Chunk) -> None:
        """Let chunks come, or the end if there are none, and the stream do what it can."""
        self._chunks.put_nowait(list(chunks))
        await self.settled()

    async def settled(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    def wait(self) -> None:
        """Let the time of a silence pass."""
        self.stream._last_sent_s -= NEVER_S

    async def look_back(self) -> None:
        """Let the timer fire."""
        self.stream._look_back()
        await self.settled()

    def read(self, *, reads: bool) -> None:
        (self._reads.set if reads else self._reads.clear)()

    async def end(self) -> bytes:
        await self.come()
        return await self.run


async def test_S7_silence_alone_is_filled() -> None:
    streaming = Streaming()
    await streaming.come(CHUNK)
    await streaming.look_back()
    assert streaming.bodies == [FRAME]
    streaming.wait()
    await streaming.look_back()
    assert streaming.bodies == [FRAME, COMMENT]
    await streaming.look_back()
    streaming.wait()
    await streaming.come(WITHOUT_CHOICES)
    await streaming.look_back()
    assert streaming.bodies == [FRAME, COMMENT, COMMENT]
    streaming.wait()
    await streaming.come(CHUNK)
    await streaming.look_back()
    streaming.wait()
    streaming.stream.send(CHUNK)
    await streaming.look_back()
    assert streaming.bodies == [FRAME, COMMENT, COMMENT, FRAME, FRAME]
    assert await streaming.end() == DONE
    assert streaming.noted.outcome == "answered"


async def test_S7_a_client_that_does_not_read_gets_no_comments() -> None:
    streaming = Streaming()
    streaming.read(reads=False)
    await streaming.come(CHUNK)
    assert not streaming.stream.is_free()
    streaming.wait()
    await streaming.look_back()
    assert streaming.bodies == [FRAME]
    streaming.read(reads=True)
    await streaming.settled()
    streaming.wait()
    await streaming.look_back()
    assert streaming.bodies == [FRAME, COMMENT]
    await streaming.end()


async def test_S7_frames_come_behind_a_comment_that_waits() -> None:
    streaming = Streaming()
    await streaming.settled()
    streaming.read(reads=False)
    streaming.wait()
    await streaming.look_back()
    streaming.wait()
    await streaming.look_back()
    await streaming.come(CHUNK)
    assert not streaming.stream.is_free()
    assert streaming.bodies == [COMMENT]
    streaming.read(reads=True)
    await streaming.settled()
    assert streaming.stream.is_free()
    assert streaming.bodies == [COMMENT, FRAME]
    await streaming.end()


@pytest.mark.parametrize("commented", [False, True])
async def test_S8_a_client_that_has_gone_was_not_answered(commented: bool) -> None:
    """A server's ``send`` may raise before ``receive`` says that the client has gone."""
    streaming = Streaming(gone=True)
    await streaming.settled()
    if commented:
        streaming.wait()
        await streaming.look_back()
    await streaming.come(CHUNK)
    with pytest.raises(ClientDisconnected):
        await streaming.run
    assert streaming.noted.outcome != "answered"
