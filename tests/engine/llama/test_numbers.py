"""If a model computes NaN for a request, that request fails with an error that says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from afterword.core.errors import EngineFailed
from afterword.core.job import Event, Job, Sampled, SamplingParams
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.llama.binding import CHANGES
from afterword.engine.llama.engine import open_engine
from afterword.engine.llama.loading import EngineOptions
from support.tiny_gguf import make_gguf

GREEDY = SamplingParams(temperature=0)
Z = ord("z")
"""The token of ``z``, whose embedding is NaN."""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("numbers") / "x.gguf", nan_tokens=[Z])


@pytest.fixture
async def engine(broken: Path) -> AsyncIterator[BatchingEngine]:
    options = EngineOptions(slots=2, threads=1, probe=False)
    opened = open_engine(broken, digest="0" * 64, name="x", options=options)
    yield opened
    await opened.aclose()


async def ask(engine: BatchingEngine, text: str, **given: object) -> list[Event]:
    job = Job(
        **{  # type: ignore[arg-type]
            "prompt_ids": tuple(engine.tokenizer.encode(text)), "n": 1, "max_tokens": 6,
            "sampling": GREEDY, "seed": 1, "logprobs": 3, **given,
        }
    )  # fmt: skip
    async with engine.open([job]) as generation:
        return [event async for events in generation for event in events]


def said(events: list[Event]) -> tuple[list[int], list[float]]:
    """Returns tokens and their log-probabilities, over all events."""
    sampled = [event for event in events if isinstance(event, Sampled)]
    return (
        [token for event in sampled for token in event.tokens],
        [logprob for event in sampled for logprob in event.logprobs],
    )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"logprobs": None},
        {"prompt_logprobs": 0, "max_tokens": 0},
        {"prompt_logprobs": 5},
        {"n": 3},
        {"sampling": SamplingParams()},
        {"sampling": SamplingParams(top_k=4, top_p=0.9)},
        {"sampling": SamplingParams(temperature=0, logit_bias=((Z, -100.0),))},
        {"sampling": SamplingParams(temperature=0, logit_bias=((40, 100.0),))},
        {"sampling": SamplingParams(min_tokens=3)},
        {"sampling": SamplingParams(frequency_penalty=1.0)},
    ],
)
async def test_a_request_fails_however_a_token_is_drawn_or_scored(
    engine: BatchingEngine, given: dict[str, object]
) -> None:
    with pytest.raises(EngineFailed, match=r"^The model computed no numbers for this request"):
        await ask(engine, "maze one two three", **given)
    # Other requests are not affected.
    assert await ask(engine, "another")


async def test_a_request_fails_after_it_generated_a_broken_token(engine: BatchingEngine) -> None:
    forced = SamplingParams(temperature=0, logit_bias=((Z, 100.0),))
    with pytest.raises(EngineFailed, match="computed no numbers"):
        await ask(engine, "one two", sampling=forced)


async def test_a_failed_request_leaves_nothing_for_others(engine: BatchingEngine) -> None:
    """Neither in a shared prefix nor in reused cells."""
    before = "one two three"
    texts = (before, f"{before} f", "o", "something else that is longer than all of it" * 3)
    alone = [said(await ask(engine, text)) for text in texts]
    for _ in range(2):
        with pytest.raises(EngineFailed):
            await ask(engine, f"{before} z" + " four five six" * 8)
        assert [said(await ask(engine, text)) for text in texts] == alone


async def test_other_requests_of_the_batch_go_on(engine: BatchingEngine) -> None:
    alone = said(await ask(engine, "a long text beside it", max_tokens=40))
    neighbour, broken = await asyncio.gather(
        ask(engine, "a long text beside it", max_tokens=40),
        ask(engine, "z" * 50),
        return_exceptions=True,
    )
    assert isinstance(broken, EngineFailed)
    assert isinstance(neighbour, list)
    assert said(neighbour) == alone
    assert engine.healthy()


@pytest.mark.skipif(not CHANGES, reason="an unchanged library loses NaN in attention")
@pytest.mark.parametrize(
    "weights",
    ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"],
)
async def test_no_operation_makes_numbers_of_nan(tmp_path: Path, weights: str) -> None:
    path = make_gguf(tmp_path / "x.gguf", nan_weights=f"blk.1.{weights}.weight")
    options = EngineOptions(slots=2, threads=1, probe=False)
    engine = open_engine(path, digest="0" * 64, name="x", options=options)
    try:
        for text in ("o", "one two three"):
            with pytest.raises(EngineFailed, match="computed no numbers"):
                await ask(engine, text)
    finally:
        await engine.aclose()
