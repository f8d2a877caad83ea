"""The tiny models are reproducible and realistic, and the probe confirms what each kind allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from afterword.engine.llama import binding
from afterword.engine.llama.binding import packed_kernels
from zoo.making import make_model
from zoo.orders import job, prompt
from zoo.serving import Model
from zoo.together import Crowd


def test_a_model_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, second = (make_model("gemma3", tmp_path / f"{i}.gguf") for i in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_every_token_before_matters(model: Model) -> None:
    """So a cache that lost or mixed up tokens would change an answer."""
    ids = list(prompt(0, 200))
    scores = []
    for changed in (None, 20, 120, 190):
        mine = [id_ if at != changed else id_ + 1 for at, id_ in enumerate(ids)]
        scored = model.fresh((job(mine, scored=0, max_tokens=0),)).scored[0]
        assert scored is not None
        scores.append(np.array(scored.logprobs))
    assert np.isfinite(scores).all()
    assert len({tuple(lp[-5:]) for lp in scores}) == len(scores)


@pytest.mark.skipif(not packed_kernels(), reason="llama.cpp's own kernels are not batch invariant")
def test_every_model_is_batch_invariant_and_shares(model: Model) -> None:
    """Otherwise the law would check little on this model."""
    assert model.batch_invariant
    assert model.loaded.sharing == ("cells" if model.loaded.model.can_trim else "checkpoints")


@pytest.mark.parametrize("name", ["deepseek4", "minimax-m3"])
def test_what_the_probe_does_not_see_is_known_by_name(tmp_path: Path, name: str) -> None:
    made = Model(make_model(name, tmp_path / f"{name}.gguf"))
    try:
        assert (made.batch_invariant, made.loaded.sharing) == (False, "none")
        request = tuple(job(prompt(stem, 300), max_tokens=2) for stem in range(3))
        with made.server() as server:
            found = server.ask(request)
        for number, one in enumerate(request):
            assert found.choices[number, 0].tokens == made.fresh((one,)).choices[0, 0].tokens
    finally:
        made.close()


@pytest.mark.skipif(not binding.CHANGES, reason="llama.cpp computes these models wrongly")
@pytest.mark.parametrize("name", ["arwkv7", "rwkv6qwen2", "cogvlm"])
async def test_models_that_our_changes_repair(tmp_path: Path, name: str) -> None:
    """Together they get the answers of a fresh server, and those are the rows asked for."""
    made = Model(make_model(name, tmp_path / f"{name}.gguf"))
    try:
        assert made.batch_invariant
        assert made.loaded.sharing != "none"
        request = tuple(job(prompt(stem, 40 + 30 * stem), max_tokens=9) for stem in range(3))
        with made.server() as server:
            assert server.runner.sequences > 1
            found = server.ask(request)
        for number, one in enumerate(request):
            alone = made.fresh((one,)).choices[0, 0]
            assert found.choices[number, 0] == alone
            # Of a scored prompt, every row is asked for.
            again = job((*one.prompt_ids, *alone.tokens), scored=0, max_tokens=0)
            scored = made.fresh((again,)).scored[0]
            assert scored is not None
            assert list(scored.logprobs)[-len(alone.tokens) :] == list(alone.logprobs)
        crowd = Crowd(made)
        await crowd.run(2)
        assert crowd.failure is None
        assert crowd.wrong == 0
    finally:
        made.close()
