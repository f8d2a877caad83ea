"""On a whole server, requests together or in line get the answers of a fresh server."""

from __future__ import annotations

import pytest

from zoo.serving import Model
from zoo.together import TOGETHER, Crowd

_ROUNDS = 3


@pytest.mark.parametrize("model", ["deepseek2", "gemma3", "rwkv7", "qwen3next"], indirect=True)
async def test_together(model: Model) -> None:
    crowd = Crowd(model)
    await crowd.run(_ROUNDS)
    assert crowd.failure is None
    assert crowd.asked == _ROUNDS * (TOGETHER - 1)
    assert crowd.wrong == 0


@pytest.mark.parametrize("model", ["qwen3moe", "mamba2"], indirect=True)
async def test_in_line(model: Model) -> None:
    """Measured values, such as the speed of prefill, change no answer."""
    crowd = Crowd(model)
    await crowd.run_in_line()
    assert crowd.failure is None
    assert crowd.asked > TOGETHER
    assert crowd.wrong == 0
