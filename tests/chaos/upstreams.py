"""An upstream with vLLM's routes and a toy vocabulary that misbehaves, each time in another way."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from typing import Any

from standins.server import VOCABULARY, Exchange, StandIn

MODEL = "stub"
_CONTEXT_TOKENS = 4096
_HUGE = (10**19, -1_000_000, 2**62, 1e3, "12", None)
"""Counts that no upstream should send."""
_ODD_CHOICES: tuple[dict[str, Any], ...] = (
    {"finish_reason": "content_filter"}, {"finish_reason": ""}, {"index": 0.0}, {"index": 99},
    {"text": None}, {"token_ids": None}, {"token_ids": [10**9]}, {"logprobs": "none"},
)  # fmt: skip
_ODD_EVENTS = (
    b": a comment\n\n", b"data: {}\n\n", b"data: [1, 2\n\n", b"event: ping\ndata: 1\n\n",
    b'data: {"choices": null}\n\n', b'data: {"choices": [{}]}\n\n', b"data: [DONE]\n\n",
    b"\xef\xbb\xbf", b"data: \xff\xfe\n\n", b'data: {"error": {"message": "no", "code": 500}}\n\n',
)  # fmt: skip


class Misbehaving(StandIn):
    """Answers well with the probability ``good``."""

    def __init__(self, dice: random.Random, *, good: float) -> None:
        super().__init__()
        self._dice = dice
        self._good = good
        self.misdeeds: dict[str, int] = {}

    @property
    def address(self) -> str:
        return f"vllm+http://127.0.0.1:{self.port}/v1#{MODEL}"

    def asked(self, exchange: Exchange, path: str, body: Any) -> None:
        # An hour of requests is not kept.
        self.paths.clear()
        self._running = [one for one in self._running if not one.done()]
        self.connections = [one for one in self.connections if not one.gone.is_set()]
        shape: Any = None
        if path == "/v1/completions":
            self._running.append(asyncio.ensure_future(self._complete(exchange, body)))
            return
        if path == "/v1/models":
            shape = {"data": [{"id": MODEL, "max_model_len": _CONTEXT_TOKENS}]}
        elif path == "/version":
            shape = {"version": "0"}
        elif path == "/detokenize":
            pieces = VOCABULARY.pieces
            raw = b"".join(pieces[i] for i in body["tokens"] if i < len(pieces))
            shape = {"prompt": raw.decode(errors="replace")}
        if shape is None:
            super().asked(exchange, path, body)
        else:
            exchange.answer(200, json.dumps(shape).encode(), content_type="application/json")

    async def _complete(self, exchange: Exchange, body: dict[str, Any]) -> None:
        """Answer a request, well or in one of many wrong ways."""
        way = "well"
        if self._dice.random() >= self._good:
            way = self._dice.choice(_WAYS)
        self.misdeeds[way] = self.misdeeds.get(way, 0) + 1
        acting = asyncio.ensure_future(getattr(self, f"_{way}")(exchange, body))
        gone = asyncio.ensure_future(exchange.gone.wait())
        await asyncio.wait([acting, gone], return_when=asyncio.FIRST_COMPLETED)
        acting.cancel()
        gone.cancel()

    async def _well(self, exchange: Exchange, body: dict[str, Any], pace_s: float = 0.01) -> None:
        exchange.begin()
        await self._tokens(exchange, body, pace_s)
        self._finish(exchange, body)

    async def _tokens(self, exchange: Exchange, body: dict[str, Any], pace_s: float) -> None:
        """Send every token of every choice, in turn."""
        count = body["max_tokens"]
        for at in range(1, count + 1):
            for index in range(body.get("n", 1)):
                event = {"choices": [_token(body, index, "length" if at == count else None)]}
                exchange.part(b"data: %b\n\n" % json.dumps(event).encode())
            await asyncio.sleep(pace_s)

    def _finish(self, exchange: Exchange, body: dict[str, Any], **more: Any) -> None:
        usage = {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": body["max_tokens"] * body.get("n", 1),
            **more,
        }
        exchange.part(b"data: %b\n\n" % json.dumps({"choices": [], "usage": usage}).encode())
        exchange.part(b"data: [DONE]\n\n")
        exchange.transport.write(b"0\r\n\r\n")

    async def _refused(self, exchange: Exchange, _: dict[str, Any]) -> None:
        status = self._dice.choice([500, 500, 502, 503, 429])
        text = self._dice.choice([b"", b"<html>no</html>", b'{"error": "no"}'])
        exchange.answer(status, text, retry_after="1")

    async def _cut(self, exchange: Exchange, body: dict[str, Any]) -> None:
        if self._dice.random() < 0.7:
            exchange.begin()
            await self._tokens(exchange, {**body, "max_tokens": self._dice.randint(0, 3)}, 0.01)
        exchange.transport.abort()

    async def _unfinished(self, exchange: Exchange, body: dict[str, Any]) -> None:
        exchange.begin()
        await self._tokens(exchange, body, 0.01)
        exchange.transport.write(b"0\r\n\r\n")

    async def _slow(self, exchange: Exchange, body: dict[str, Any]) -> None:
        await asyncio.sleep(self._dice.uniform(0.5, 3))
        await self._well(exchange, body, pace_s=self._dice.uniform(0.05, 0.4))

    async def _silent(self, exchange: Exchange, body: dict[str, Any]) -> None:
        exchange.begin()
        await self._tokens(exchange, {**body, "max_tokens": 1}, 0)
        await exchange.gone.wait()

    async def _odd_choice(self, exchange: Exchange, body: dict[str, Any]) -> None:
        exchange.begin()
        choice = {"index": 0, "text": "b", "finish_reason": None, "token_ids": [98]}
        event = {"choices": [{**choice, **self._dice.choice(_ODD_CHOICES)}]}
        exchange.part(b"data: %b\n\n" % json.dumps(event).encode())
        self._finish(exchange, body)

    async def _odd_event(self, exchange: Exchange, body: dict[str, Any]) -> None:
        exchange.begin()
        exchange.part(self._dice.choice(_ODD_EVENTS))
        await self._tokens(exchange, body, 0.01)
        self._finish(exchange, body)

    async def _odd_counts(self, exchange: Exchange, body: dict[str, Any]) -> None:
        exchange.begin()
        await self._tokens(exchange, body, 0.01)
        field = self._dice.choice(["prompt_tokens", "completion_tokens"])
        self._finish(exchange, body, **{field: self._dice.choice(_HUGE)})

    async def _whole_answer(self, exchange: Exchange, body: dict[str, Any]) -> None:
        choice = {"index": 0, "text": "bb", "finish_reason": "length"}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 2}
        answer = json.dumps({"choices": [choice], "usage": usage}).encode()
        exchange.answer(200, answer, content_type="application/json")

    async def _early(self, exchange: Exchange, body: dict[str, Any]) -> None:
        exchange.transport.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n")
        await self._well(exchange, body)

    async def _huge_head(self, exchange: Exchange, _: dict[str, Any]) -> None:
        exchange.transport.write(b"HTTP/1.1 200 OK\r\n")
        for i in range(200):
            if exchange.transport.is_closing():
                return
            exchange.transport.write(b"x%d: %b\r\n" % (i, b"y" * 5000))
            await asyncio.sleep(0.001)
        exchange.transport.abort()

    async def _garbage(self, exchange: Exchange, _: dict[str, Any]) -> None:
        exchange.transport.write(self._dice.randbytes(500))
        exchange.transport.abort()


def _token(body: Mapping[str, Any], index: int, finish: str | None) -> Mapping[str, Any]:
    logprobs = None
    if body.get("logprobs") is not None:
        logprobs = {
            "tokens": ["token_id:98"], "token_logprobs": [-0.5], "text_offset": [0],
            "top_logprobs": [{"token_id:98": -0.5}],
        }  # fmt: skip
    return {"index": index, "text": "b", "finish_reason": finish, "token_ids": [98],
            "logprobs": logprobs}  # fmt: skip


_WAYS = ("refused", "cut", "unfinished", "slow", "silent", "odd_choice", "odd_event", "odd_counts",
         "whole_answer", "early", "huge_head", "garbage")  # fmt: skip
