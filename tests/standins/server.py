"""An upstream with vLLM's formats whose answers a test decides, one after another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import httptools

from afterword.core.wire import Vocabulary
from afterword.engine.toy import ToyTokenizer
from afterword.gateway.dialects.dialect import Facts

_TOKENIZER = ToyTokenizer()
VOCABULARY = Vocabulary(
    pieces=list(_TOKENIZER.pieces),
    special_ids=sorted(_TOKENIZER.special_ids),
    end_ids=sorted(_TOKENIZER.end_ids),
    document_start_id=_TOKENIZER.document_start_id,
    bos_id=None,
    roles=_TOKENIZER.roles,
    infill=_TOKENIZER.infill,
)
FACTS = Facts(
    model="toy", context_tokens=256, max_logprobs=20, identity="toy", vocabulary=VOCABULARY
)


class Exchange(asyncio.Protocol):
    """One connection of a client; ``gone`` is set when it closes."""

    def __init__(self, server: StandIn) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._path = ""
        self.gone = asyncio.Event()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._server.connections.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path = url.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body = json.loads(self._body) if self._body else None
        self._body = b""
        self._server.asked(self, self._path, body)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a whole answer."""
        lines = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items())
        head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{lines}\r\n"
        self.transport.write(head.encode() + body)

    def begin(self, kind: str = "text/event-stream") -> None:
        """Send the head of a stream."""
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"
        self.transport.write(head.encode())

    def part(self, data: bytes) -> None:
        """Send some bytes of a stream."""
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def tokens(self, ids: Sequence[int], finish: str | None = None, index: int = 0) -> None:
        """Send a chunk with tokens."""
        choice = {"index": index, "text": "", "finish_reason": finish, "token_ids": list(ids)}
        self.part(b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode())

    def end(self, prompt_tokens: int = 1) -> None:
        """Send the usage, ``[DONE]`` and the end of the answer."""
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 3}
        self.part(b"data: %b\n\n" % json.dumps({"choices": [], "usage": usage}).encode())
        self.part(b"data: [DONE]\n\n")
        self.transport.write(b"0\r\n\r\n")

    def whole(self, ids: Sequence[int] = (98, 98, 98)) -> None:
        """Send a complete, valid stream."""
        self.begin()
        self.tokens(ids[:-1])
        self.tokens(ids[-1:], "length")
        self.end()


Behaviour = Callable[[Exchange], Awaitable[None] | None]


class StandIn:
    """A server on a free port. ``behaviour`` answers completions; ``bodies`` are the requests.

    A ``silent`` one does not answer probes of its health. ``tokenized`` is the answer to
    ``/tokenize``, if it is not the true one. ``listed`` is its list of models.
    """

    def __init__(self, behaviour: Behaviour = Exchange.whole, *, silent: bool = False) -> None:
        self.behaviour = behaviour
        self.healthy = True
        self.silent = silent
        self.tokenized: bytes | None = None
        self.listed = b""
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.connections: list[Exchange] = []
        self.news = asyncio.Event()
        self._running: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Exchange(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for running in self._running:
            running.cancel()
        for connection in self.connections:
            connection.transport.abort()
        for connection in self.connections:
            await connection.gone.wait()

    @property
    def address(self) -> str:
        return f"vllm+http://127.0.0.1:{self.port}/v1"

    def asked(self, exchange: Exchange, path: str, body: Any) -> None:
        self.paths.append(path)
        if path in {"/health", "/v1/models"}:
            if not self.silent:
                exchange.answer(200 if self.healthy else 500, self.listed)
        elif path == "/tokenize":
            ids = _TOKENIZER.encode(body.get("prompt") or body["content"])
            good = json.dumps({"tokens": ids}).encode()
            exchange.answer(200, good if self.tokenized is None else self.tokenized)
        else:
            self.bodies.append(body)
            run = self.behaviour(exchange)
            if run is not None:
                self._running.append(asyncio.ensure_future(run))
        self.news.set()

    async def until_asked(self, times: int) -> None:
        """Wait until ``times`` completions have been requested."""
        while len(self.bodies) < times:
            self.news.clear()
            await self.news.wait()
