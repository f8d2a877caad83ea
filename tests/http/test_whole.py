"""A whole answer is made in slices, and is the same as if it were made at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from afterword.core.pace import SLICE_COST, Pace
from afterword.core.wire import Choice, Logprobs
from afterword.engine.toy import toy_engine
from afterword.http.whole import encode_choice
from support.asgi import Client

TRAP = '"choices":[] "tokens":[] \\"tokens\\":[]'


@pytest.mark.parametrize("count", [0, 1, 256, 257, 1000])
def test_a_choice_in_slices_is_the_choice(count: int) -> None:
    logprobs = Logprobs(
        [TRAP, *"a" * count],
        [None, *[-0.5] * count],
        [None, *[{"a": -0.5, TRAP: -9999.0}] * count],
        list(range(count + 1)),
    )
    for choice in (Choice(TRAP, 3, logprobs, "length"), Choice(TRAP, 3, None, "stop")):
        whole = msgspec.json.encode(choice)
        parts = list(encode_choice(choice))
        assert b"".join(parts) == whole
        assert max(map(len, parts)) < 40_000
        # What was written is freed slice by slice.
        assert not any(logprobs.top_logprobs) or count < 256


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The cost of every slice of work on the event loop, from one pause to the next."""
    slices = [0.0]
    real = Pace.spend

    async def spend(self: Pace, cost: float) -> None:
        slices[-1] += cost
        pauses = self.pauses
        await real(self, cost)
        if self.pauses > pauses:
            slices.append(0.0)

    monkeypatch.setattr(Pace, "spend", spend)
    return slices


HEAVY: dict[str, dict[str, Any]] = {
    "prompts": {"prompt": ["a"] * 2048, "max_tokens": 0},
    "choices": {"prompt": ["a"] * 16, "n": 128, "max_tokens": 0},
    "echo": {"prompt": ["a " * 100] * 512, "n": 2, "max_tokens": 0, "echo": True},
    "scores": {"prompt": ["ab " * 60] * 64, "n": 2, "max_tokens": 0, "echo": True, "logprobs": 5},
    "ranks": {"prompt": "ab " * 300, "n": 16, "max_tokens": 0, "prompt_logprobs": 20},
    "generated": {"prompt": ["a"] * 64, "n": 4, "max_tokens": 8, "logprobs": 5, "stop": ["#"]},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", HEAVY)
async def test_a_heavy_answer_gives_way(
    serve: Callable[..., Client], spent: list[float], name: str, *, stream: bool
) -> None:
    """No piece of work is larger than a slice, so no slice is larger than two."""
    client = serve(toy_engine(check=False, context_tokens=1024, max_batch_tokens=512))
    reply = await client.post(
        "/v1/completions", {"model": "toy", "seed": 1, **HEAVY[name], "stream": stream}
    )
    assert reply.status == 200
    assert max(spent) <= 2 * SLICE_COST
    assert len(spent) > 5


async def test_slices_change_no_answer(serve: Callable[..., Client]) -> None:
    body: dict[str, Any] = {
        "prompt": ["ab " * 60, "b"],
        "n": 2,
        "max_tokens": 4,
        "echo": True,
        "logprobs": 3,
    }
    client = serve(toy_engine())
    whole = await client.complete(**body, seed=5)
    alone = [await client.complete(**{**body, "prompt": one}, seed=5) for one in body["prompt"]]
    shown = [{**choice, "index": 0} for choice in whole["choices"]]
    assert shown == [{**choice, "index": 0} for answer in alone for choice in answer["choices"]]
    assert len(shown) == 4
