"""Requests that come together get the answers that they have alone, on a whole server."""

from __future__ import annotations

import pytest

from zoo.serving import Model
from zoo.together import TOGETHER, Crowd

_ROUNDS = 4


@pytest.mark.parametrize("model", ["deepseek2", "gemma3", "rwkv7", "qwen3next"], indirect=True)
async def test_together(model: Model) -> None:
    crowd = Crowd(model)
    await crowd.run(_ROUNDS)
    assert crowd.failure is None
    assert crowd.asked == _ROUNDS * (TOGETHER - 1)
    assert crowd.wrong == 0
