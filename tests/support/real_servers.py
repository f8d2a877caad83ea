"""Checks that hold in front of every real server, of any dialect."""

from __future__ import annotations

from afterword.gateway.engine import RemoteEngine
from support.asgi import Client


async def cached_tokens_are_passed_on(client: Client, *, prompt_tokens: int) -> None:
    prompt = [40 + i % 30 for i in range(prompt_tokens)]
    await client.complete(prompt=prompt, max_tokens=1)
    again = await client.complete(prompt=prompt, max_tokens=1)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 100


async def a_client_that_leaves_stops_it(client: Client, engine: RemoteEngine) -> None:
    exchange, run = client.begin({"model": "toy", "prompt": "a", "max_tokens": 400, "stream": True})
    await exchange.frames(1)
    exchange.leave.set()
    await run
    assert engine.stats().running_sequences == 0


async def a_prompt_beyond_the_context_is_refused(client: Client) -> None:
    error = await client.refuse(prompt=[7] * 500, max_tokens=100)
    assert error["code"] == "context_length_exceeded"
