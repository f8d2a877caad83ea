"""Requests that come together, to a whole server: HTTP, completion layer, the engine's thread."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from afterword.engine.llama.engine import start_engine
from asgi import Client
from conftest import make_client
from zoo.orders import prompt
from zoo.serving import SLOTS, Model

Body: TypeAlias = Mapping[str, Any]

TOGETHER = 8
_BODIES = 24
_SLOTS = (SLOTS, 5)


def bodies() -> Sequence[Body]:
    """Requests of unequal lengths: one choice, several, the best of some, arrays, scores."""
    rng = random.Random(11)
    kinds: Sequence[Body] = (
        {},
        {"n": 4, "temperature": 1},
        {"best_of": 4, "n": 2, "temperature": 1},
        {"echo": True, "logprobs": 2},
        {"echo": True, "logprobs": 0, "max_tokens": 0},
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
    """Rounds of requests that come together, and how many of them were answered otherwise."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._fresh: dict[int, Any] = {}
        self.asked = 0
        self.wrong = 0
        self.failure: str | None = None

    async def run(self, rounds: int, seed: int = 0) -> None:
        """All rounds on one server after the other; stops at the first failure."""
        rng = random.Random(seed)
        numbers = [rng.sample(range(_BODIES), TOGETHER) for _ in range(rounds)]
        for number in sorted({number for chosen in numbers for number in chosen}):
            engine = start_engine(self._model.open(SLOTS), self._model.options(SLOTS))
            self._fresh[number] = await self._answer(make_client({"zoo": engine}), number)
            await engine.aclose()
        for slots, part in zip(_SLOTS, (numbers[::2], numbers[1::2]), strict=True):
            engine = start_engine(self._model.open(slots), self._model.options(slots))
            client = make_client({"zoo": engine})
            for chosen in part:
                if self.failure is None:
                    await self._round(client, chosen, leaves=rng.randrange(TOGETHER))
            await engine.aclose()

    async def _round(self, client: Client, chosen: Sequence[int], leaves: int) -> None:
        """All at once; the client of one goes away after the first token that it is sent."""
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._answer(client, number))
                     for at, number in enumerate(chosen) if at != leaves]  # fmt: skip
            group.create_task(_leave(client, BODIES[chosen[leaves]]))
        kept = [number for at, number in enumerate(chosen) if at != leaves]
        for number, task in zip(kept, asked, strict=True):
            self.asked += 1
            self.wrong += self._model.batch_invariant and task.result() != self._fresh[number]

    async def _answer(self, client: Client, number: int) -> Any:
        """All that must not change; how much was cached may."""
        reply = await client.post("/v1/completions", BODIES[number])
        if reply.status != 200:
            self.failure = self.failure or f"{reply.status}: {reply.error['message']}"
            return None
        whole = reply.json()
        return whole["choices"], whole["usage"]["completion_tokens"]


async def _leave(client: Client, body: Body) -> None:
    streamed = {key: value for key, value in body.items() if key != "best_of"}
    exchange, task = client.begin({**streamed, "stream": True})
    await exchange.frames(1)
    exchange.leave.set()
    await task
