"""An upstream for the benchmark: vLLM's routes and a fixed token, at a given pace.

The length of a prompt is the pace of its stream in tokens a second, plus one; at pace 0 the stub
writes as fast as the client reads. It makes one write for each token at any pace. An echoed prompt
comes with its log-probabilities in the first event, and its tokens come without a pause.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import cache
from typing import Any

import httptools
import uvloop

_MOST_BUFFERED_BYTES = 256 * 1024
TOKEN = 97


class Stream(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._writable = asyncio.Event()
        self._writable.set()
        self._url = self._body = b""
        self._run: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment] # a stream's
        self._transport.set_write_buffer_limits(_MOST_BUFFERED_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the loop's
        """Called by the loop."""
        if self._run is not None:
            self._run.cancel()

    def pause_writing(self) -> None:
        """Called by the loop."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Called by the loop."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        """Called by the parser."""
        self._url = url

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._body += body

    def on_message_complete(self) -> None:
        """Called by the parser."""
        body = json.loads(self._body) if self._body else {}
        url, self._url, self._body = self._url.decode(), b"", b""
        if url.endswith("/completions"):
            self._run = asyncio.get_running_loop().create_task(self._stream(body))
        else:
            self._answer(_whole(url, body))

    def _answer(self, shape: object) -> None:
        body = json.dumps(shape).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)

    async def _stream(self, body: dict[str, Any]) -> None:
        tokens = body["max_tokens"]
        prompt = body["prompt"]
        # A gateway may drop other fields, but it passes the prompt on.
        first = prompt[0] if isinstance(prompt[0], str) and len(prompt) == 1 else prompt
        echo = body.get("echo", False)
        pace = 0 if echo else len(first) - 1
        ids = [TOKEN] if body.get("return_token_ids") else None
        scores = _logprobs(1, body["logprobs"]) if echo else None
        token, last = _frame("a", ids, None, scores), _frame("a", ids, "length", scores)
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        if echo:
            self._transport.write(_scores(len(first), body["logprobs"]))
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for at in range(1, tokens + 1):
            self._transport.write(last if at == tokens else token)
            if pace:
                await asyncio.sleep(max(began_s + at / pace - loop.time(), 0))
            elif not self._writable.is_set():
                await self._writable.wait()
            elif at % 8 == 0:
                await asyncio.sleep(0)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": tokens,
                 "total_tokens": tokens + len(prompt)}  # fmt: skip
        self._transport.write(_part({"choices": [], "usage": usage}))
        self._transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def _whole(url: str, body: dict[str, Any]) -> object:
    if url.endswith("/models"):
        return {"object": "list", "data": [{"id": "stub", "object": "model",
                                            "max_model_len": 1 << 20}]}  # fmt: skip
    if url.endswith("/detokenize"):
        return {"prompt": bytes(i for i in body["tokens"] if i < 128).decode()}
    if url.endswith("/tokenize"):
        return {"tokens": list(body["prompt"].encode("ascii", "replace"))}
    return {"version": "stub"}


def _frame(
    text: str, ids: list[int] | None, finish: str | None, logprobs: dict[str, Any] | None
) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish,
              "stop_reason": None, "token_ids": ids}  # fmt: skip
    return _part({"choices": [choice]})


@cache
def _scores(tokens: int, k: int) -> bytes:
    """Returns the event of an echoed prompt. It is kept, because it takes seconds to write."""
    return _frame("a" * tokens, [TOKEN] * tokens, None, _logprobs(tokens, k, first=True))


def _logprobs(tokens: int, k: int, *, first: bool = False) -> dict[str, Any]:
    top = {f"token_id:{TOKEN + i}": -1.25 - i for i in range(k)}
    scores: dict[str, Any] = {
        "tokens": [f"token_id:{TOKEN}"] * tokens,
        "token_logprobs": [-1.25] * tokens,
        "top_logprobs": [top] * tokens,
        "text_offset": list(range(tokens)),
    }
    if first:
        scores["token_logprobs"][0] = scores["top_logprobs"][0] = None
    return scores


def _part(more: dict[str, Any]) -> bytes:
    chunk = {"id": "cmpl-0123456789abcdef0123456789abcdef", "object": "text_completion",
             "created": 1, "model": "stub", **more}  # fmt: skip
    event = b"data: %b\n\n" % json.dumps(chunk, separators=(",", ":")).encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Stream, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
