"""Large bodies: what requests under way have of them is bounded, for a key and for all."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from afterword.core.errors import EngineOverloaded
from afterword.core.limits import Limits
from afterword.engine.toy import toy_engine
from afterword.http.uploads import MOST_OF_ALL, MOST_OF_ONE, Upload, Uploads
from support.asgi import Client

LIMIT_BYTES = 1 << 20
FREE_BYTES = 1 << 16
PATHS = ["/v1/completions", "/tokenize", "/detokenize", "/apply-template", "/infill",
         "/v1/fim/completions"]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, LIMIT_BYTES)), max_size=200))
def test_they_take_no_more_than_their_share(bodies: list[tuple[int, int]]) -> None:
    """A body is refused if and only if it is too much. What is over is forgotten."""
    uploads = Uploads()
    running: list[Upload] = []
    taken: Counter[int] = Counter()
    for owner, size_bytes in bodies:
        upload = Upload(uploads, str(owner))
        more = max(size_bytes - FREE_BYTES, 0)
        fits = (
            taken[owner] + more <= MOST_OF_ONE * LIMIT_BYTES
            and taken.total() + more <= MOST_OF_ALL * LIMIT_BYTES
        )
        with nullcontext() if fits or not more else pytest.raises(EngineOverloaded):
            upload.grow(size_bytes, LIMIT_BYTES)
            upload.grow(size_bytes, LIMIT_BYTES)
            taken[owner] += more
            running.append(upload)
    for upload in running:
        upload.end()
        upload.end()
    for _ in range(MOST_OF_ONE):
        Upload(uploads, "0").grow(LIMIT_BYTES, LIMIT_BYTES)


class _Sending:
    """A client that has sent a part of a large body, and then waits."""

    def __init__(self, client: Client, path: str) -> None:
        self.sent: list[Message] = []
        self.rest = asyncio.Event()
        self._asked = 0
        scope = client.scope("POST", path)
        run: Any = client.app(scope, self.receive, self.send)
        self.run = asyncio.ensure_future(run)

    async def receive(self) -> Message:
        self._asked += 1
        if self._asked == 1:
            return {"type": "http.request", "body": b" " * (LIMIT_BYTES - 1), "more_body": True}
        await self.rest.wait()
        if self._asked > 2:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"{", "more_body": False}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status


@pytest.mark.parametrize("path", PATHS)
async def test_one_client_s_large_bodies_are_bounded(
    serve: Callable[..., Client], path: str
) -> None:
    client = serve(toy_engine(), limits=Limits(max_body_bytes=LIMIT_BYTES))
    begun = [_Sending(client, path) for _ in range(MOST_OF_ONE + 3)]
    refused = begun[MOST_OF_ONE:]
    for one in refused:
        await one.run
        assert one.status == 503
    # An ordinary request goes on meanwhile.
    small = {"model": "toy", "prompt": "a", "max_tokens": 1}
    assert (await client.post("/v1/completions", small)).status == 200
    for one in begun:
        one.rest.set()
        await one.run
    assert {one.status for one in begun[:MOST_OF_ONE]} == {400}
    # What was there is forgotten.
    again = _Sending(client, path)
    again.rest.set()
    await again.run
    assert again.status == 400


async def test_a_large_body_counts_until_its_request_is_over(serve: Callable[..., Client]) -> None:
    """What was made of it takes memory until then."""
    client = serve(toy_engine(), limits=Limits(max_body_bytes=LIMIT_BYTES))
    body = {"model": "toy", "prompt": "a", "max_tokens": 1, "stream": True}
    large = json.dumps(body).encode().ljust(LIMIT_BYTES)
    reads = asyncio.Event()
    begun = [client.begin(large, blocked=reads) for _ in range(MOST_OF_ONE)]
    for exchange, _ in begun:
        await exchange.frames(1)
    refused = await client.request("POST", "/v1/completions", large)
    reads.set()
    assert (refused.status, refused.error["code"]) == (503, "engine_overloaded")
    assert "retry-after" in refused.headers
    for exchange, run in begun:
        await run
        assert exchange.reply.status == 200
    assert (await client.request("POST", "/v1/completions", large)).status == 200
