"""Drives an ASGI app in this process: whole answers, streams, clients that leave or stall."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Message

from afterword.http.exchange import BODY_WRITER


@dataclass(frozen=True)
class Reply:
    """What a client sees of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The envelope's inside; all four keys, as H1 wants, and nothing else."""
        envelope = self.json()
        assert set(envelope) == {"error"}
        error: dict[str, Any] = envelope["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


@dataclass
class Exchange:
    """One request under way; ``sent`` are the app's messages, each set as it comes.

    A ``BodyWriter``, as a transaction of this server is. ``written`` counts what came that way.
    """

    body: bytes = b""
    sent: list[Message] = field(default_factory=list)
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    blocked: asyncio.Event | None = None
    written: int = 0
    _asked: bool = False

    async def receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self.news.set()
        if self.blocked is not None and message["type"] == "http.response.body":
            await self.blocked.wait()

    def is_free(self) -> bool:
        return self.blocked is None or self.blocked.is_set()

    def write_part(self, body: bytes) -> None:
        self.written += 1
        self.sent.append({"type": "http.response.body", "body": body, "more_body": True})
        self.news.set()

    async def frames(self, count: int) -> None:
        """Wait until the app has sent this many parts of its body."""
        while sum(m["type"] == "http.response.body" for m in self.sent) < count:
            self.news.clear()
            await self.news.wait()

    @property
    def reply(self) -> Reply:
        start, *parts = self.sent
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        assert len(headers) == len(start["headers"])
        return Reply(start["status"], headers, b"".join(p.get("body", b"") for p in parts))


class Client:
    """A client of the app."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str] | None = None) -> None:
        self.app = app
        self.headers = dict(headers or {})

    def with_key(self, secret: str) -> Client:
        """The same with a key."""
        return Client(self.app, {**self.headers, "authorization": f"Bearer {secret}"})

    def scope(
        self, method: str, path: str, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        path, _, query = path.partition("?")
        given = {"host": "server.example", **self.headers, **(headers or {})}
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(k.lower().encode(), v.encode()) for k, v in given.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
        }

    def begin(
        self,
        body: Any,
        *,
        path: str = "/v1/completions",
        blocked: asyncio.Event | None = None,
    ) -> tuple[Exchange, asyncio.Task[None]]:
        """Start a POST and give it to be watched."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        exchange = Exchange(raw, blocked=blocked)
        scope = self.scope("POST", path) | {BODY_WRITER: exchange}
        run: Any = self.app(scope, exchange.receive, exchange.send)
        return exchange, asyncio.ensure_future(run)

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        exchange = Exchange(body)
        scope = self.scope(method, path, headers) | {BODY_WRITER: exchange}
        await self.app(scope, exchange.receive, exchange.send)
        assert not exchange.sent[-1].get("more_body", False)
        return exchange.reply

    async def get(self, path: str) -> Reply:
        return await self.request("GET", path)

    async def post(self, path: str, body: Any) -> Reply:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.request("POST", path, raw)

    async def delete(self, path: str) -> Reply:
        return await self.request("DELETE", path)

    async def refuse(self, **body: Any) -> dict[str, Any]:
        """The error of a request that must be refused with a 400."""
        reply = await self.post("/v1/completions", {"model": "toy", **body})
        assert reply.status == 400, reply.body
        assert reply.error["type"] == "invalid_request_error"
        return reply.error

    async def complete(self, **body: Any) -> dict[str, Any]:
        """The answer to a request that must be honoured."""
        reply = await self.post("/v1/completions", {"model": "toy", **body})
        assert reply.status == 200, reply.body
        assert reply.headers["content-type"] == "application/json"
        answer: dict[str, Any] = reply.json()
        return answer

    async def stream(self, **body: Any) -> list[dict[str, Any]]:
        """The chunks of a streamed answer, whose frames are as S1 wants them."""
        reply = await self.post("/v1/completions", {"model": "toy", "stream": True, **body})
        assert reply.status == 200, reply.body
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        return chunks_of(reply.body)


def chunks_of(body: bytes) -> list[dict[str, Any]]:
    """Parse server-sent events strictly."""
    assert body.endswith(b"\n\n")
    frames = body[:-2].split(b"\n\n")
    assert all(frame.startswith(b"data: ") and b"\n" not in frame for frame in frames)
    payloads = [frame[6:] for frame in frames]
    assert payloads[-1] == b"[DONE]"
    return [json.loads(payload) for payload in payloads[:-1]]


def fold(chunks: list[dict[str, Any]], *, usage: bool) -> dict[str, Any]:
    """A stream as the answer that it means; asserts S2, S3, S5 and S9 on the way."""
    if usage:
        *chunks, last = chunks
        assert last["choices"] == []
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert all("usage" not in chunk for chunk in chunks)
        last = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        (part,) = chunk["choices"]
        assert {"text", "index", "logprobs", "finish_reason"} <= set(part)
        if part["logprobs"] is not None:
            assert len(part["logprobs"]["tokens"]) <= 1
        whole = choices.get(part["index"])
        if whole is None:
            choices[part["index"]] = part
            continue
        assert whole["finish_reason"] is None
        whole["text"] += part["text"]
        whole["finish_reason"] = part["finish_reason"]
        assert (whole["logprobs"] is None) == (part["logprobs"] is None)
        for name in whole["logprobs"] or ():
            whole["logprobs"][name] += part["logprobs"][name]
        if "token_ids" in whole:
            whole["token_ids"] += part["token_ids"]
        assert not {"prompt_token_ids", "prompt_logprobs"} & set(part)
    heads = [
        {k: v for k, v in chunk.items() if k not in {"choices", "usage", "obfuscation"}}
        for chunk in [*chunks, *([last] if usage else [])]
    ]
    assert all(head == heads[0] for head in heads)
    folded = {**heads[0], "choices": [choices[i] for i in sorted(choices)]}
    if usage:
        folded["usage"] = last["usage"]
    return folded
