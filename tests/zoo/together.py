"""Sends requests together to a whole server: HTTP, completion layer, the engine's thread."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from afterword.engine.llama.engine import start_engine
from conftest import make_client
from support.asgi import Client
from zoo.orders import prompt
from zoo.serving import SLOTS, Model, stretched

Body: TypeAlias = Mapping[str, Any]

TOGETHER = 8
_BODIES = 24
_SLOTS = (SLOTS, 5)


def bodies() -> Sequence[Body]:
    """Requests of different lengths: one choice, several, the best of some, arrays, scores."""
    rng = random.Random(11)
    kinds: Sequence[Body] = (
        {},
        {"n": 4, "temperature": 1},
        {"best_of": 4, "n": 2, "temperature": 1},
        {"echo": True, "logprobs": 2},
        {"echo": True, "logprobs": 0, "max_tokens": 0},
        # Text that repeats itself, so that drafts are accepted.
        {"prompt": [300, 301] * 30, "logit_bias": {"300": 100, "301": 100}, "max_tokens": 30},
        {"prompt": [[*prompt(0, cut, 5, branch=cut)] for cut in (150, 20, 90)], "n": 2},
    )
    made = []
    for number in range(_BODIES):
        ids = prompt(number % 3, rng.choice((3, 17, 64, 70, 140, 260)), 9, branch=number)
        made.append({
            "model": "zoo",
            "prompt": [*ids],
            "max_tokens": rng.choice((1, 5, 20, 40)),
            "temperature": 0,
            "logprobs": 1,
            "seed": number,
            **kinds[number % len(kinds)],
        })  # fmt: skip
    return made


BODIES = bodies()


class Crowd:
    """Rounds of requests that come together; counts answers that differ from a fresh server's."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._fresh: dict[int, Any] = {}
        self.asked = 0
        self.wrong = 0
        self.nats = 0.0
        self.failure: str | None = None

    async def run(self, rounds: int, seed: int = 0) -> None:
        """Run ``rounds`` rounds, half of them with more slots; stop at the first failure."""
        rng = random.Random(seed)
        numbers = [rng.sample(range(_BODIES), TOGETHER) for _ in range(rounds)]
        if self._model.batch_invariant:
            await self._ask_fresh(number for chosen in numbers for number in chosen)
        for slots, part in zip(_SLOTS, (numbers[::2], numbers[1::2]), strict=True):
            async with self._server(slots) as client:
                for chosen in part:
                    if self.failure is None:
                        await self._round(client, chosen, leaves=rng.randrange(TOGETHER))

    async def run_in_line(self) -> None:
        """Send requests of one sequence one after the other, twice each, to one server."""
        numbers = [number for number, body in enumerate(BODIES) if _is_single(body)]
        await self._ask_fresh(numbers)
        async with self._server(SLOTS) as client:
            for number in [*numbers, *numbers]:
                self._compare(number, await self._answer(client, number))

    async def _ask_fresh(self, numbers: Iterable[int]) -> None:
        """Send each request to a server of its own."""
        for number in sorted(set(numbers)):
            async with self._server(SLOTS) as client:
                self._fresh[number] = await self._answer(client, number)

    @asynccontextmanager
    async def _server(self, slots: int) -> AsyncIterator[Client]:
        engine = start_engine(self._model.open(slots), self._model.options(slots))
        try:
            yield make_client({"zoo": engine})
        finally:
            await engine.aclose()

    async def _round(self, client: Client, chosen: Sequence[int], leaves: int) -> None:
        """Send all at once; one client disconnects after its first token."""
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._answer(client, number))
                     for at, number in enumerate(chosen) if at != leaves]  # fmt: skip
            group.create_task(_leave(client, self._body(chosen[leaves])))
        kept = [number for at, number in enumerate(chosen) if at != leaves]
        for number, task in zip(kept, asked, strict=True):
            if self._model.batch_invariant:
                self._compare(number, task.result())
            else:
                self.asked += 1

    def _compare(self, number: int, found: Any) -> None:
        self.asked += 1
        expected = self._fresh[number]
        if found and expected and found != expected:
            self.wrong += 1
            self.nats = max(self.nats, _apart(found[0], expected[0]))

    def _body(self, number: int) -> Body:
        body, times = BODIES[number], self._model.stretch
        prompts = body["prompt"]
        if isinstance(prompts[0], int):
            return {**body, "prompt": stretched(prompts, times)}
        return {**body, "prompt": [stretched(ids, times) for ids in prompts]}

    async def _answer(self, client: Client, number: int) -> Any:
        """Returns all that must not change; the number of cached tokens may."""
        reply = await client.post("/v1/completions", self._body(number))
        if reply.status != 200:
            message = reply.error["message"].split(" (request id")[0]
            self.failure = self.failure or f"{reply.status}: {message}"
            return None
        whole = reply.json()
        return whole["choices"], whole["usage"]["completion_tokens"]


def _is_single(body: Body) -> bool:
    return "n" not in body and isinstance(body["prompt"][0], int)


def _apart(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> float:
    """Returns the largest difference of log-probability of the same token, in nats."""
    worst = 0.0
    for mine, other in zip(found, expected, strict=True):
        entries = (mine["logprobs"], other["logprobs"])
        tokens, values = ([one[name] for one in entries] for name in ("tokens", "token_logprobs"))
        for a, b, x, y in zip(*tokens, *values, strict=False):
            if a != b:
                break
            worst = max(worst, abs((x or 0.0) - (y or 0.0)))
    return worst


async def _leave(client: Client, body: Body) -> None:
    streamed = {key: value for key, value in body.items() if key != "best_of"}
    exchange, task = client.begin({**streamed, "stream": True})
    await exchange.frames(1)
    exchange.leave.set()
    await task
