"""A mixture of experts in each format of weights is batch invariant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from afterword.engine.llama.binding import packed_kernels
from zoo.architectures import Weights
from zoo.making import make_model
from zoo.orders import job, prompt
from zoo.serving import Model, difference
from zoo.together import Crowd


@pytest.fixture(params=get_args(Weights))
def model_of_format(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Model]:
    made = Model(make_model("qwen3moe", tmp_path / "model.gguf", request.param))
    yield made
    made.close()


@pytest.mark.skipif(not packed_kernels(), reason="llama.cpp's own kernels are not batch invariant")
async def test_experts_are_batch_invariant(model_of_format: Model) -> None:
    model = model_of_format
    assert model.batch_invariant
    requests = [(job(prompt(0, 120, 9, branch=cut), n=3, temperature=1.0),) for cut in range(3)]
    with model.server() as server:
        for request in requests:
            assert difference(server.ask(request), model.fresh(request)) is None
    crowd = Crowd(model)
    await crowd.run(1)
    assert crowd.failure is None
    assert crowd.wrong == 0
