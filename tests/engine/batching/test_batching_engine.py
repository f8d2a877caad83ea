"""What an engine says and does at its end, and with a tiny vocabulary."""

from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest

from afterword.core.errors import ContextLengthExceeded, EngineUnavailable
from afterword.core.job import NO_TOKEN, Event, Job, Prefilled, Sampled, SamplingParams
from afterword.core.protocols import EngineCard
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.batching.runner import Batch
from afterword.engine.toy import ToyRunner, ToyTokenizer, toy_engine


def job(*, logprobs: int | None = None) -> Job:
    return Job(
        prompt_ids=(1, 2, 3), n=1, max_tokens=2, sampling=SamplingParams(), seed=1,
        logprobs=logprobs, prompt_logprobs=logprobs,
    )  # fmt: skip


async def events_of(engine: BatchingEngine) -> list[Event]:
    async with engine.open([job(logprobs=20)]) as generation:
        return [event async for events in generation for event in events]


async def test_a_vocabulary_may_have_fewer_tokens_than_are_asked_for() -> None:
    """Each position has as many entries as were asked for, so the last ones are empty."""
    card = EngineCard(
        context_tokens=256, fingerprint="fp_0", batch_invariant=True, prefix_sharing="cells",
        details={},
    )  # fmt: skip
    engine = BatchingEngine(ToyRunner(12, slots=2), ToyTokenizer(), card, check=True)
    events = await events_of(engine)
    (prefilled,) = (event for event in events if isinstance(event, Prefilled))
    assert prefilled.scored is not None
    found = list(prefilled.scored.top_ids)
    for event in events:
        if isinstance(event, Sampled):
            found += event.top_ids
    tops = [found[at : at + 20] for at in range(0, len(found), 20)]
    assert len(tops) == 4
    for top in tops:
        assert sorted(top[:12]) == list(range(12))
        assert top[12:] == [NO_TOKEN] * 8
    await engine.aclose()


async def test_an_engine_that_is_dead_runs_nothing() -> None:
    steps: list[int] = []

    def fail(batch: Batch) -> None:
        steps.append(len(batch.tokens))
        if len(steps) > 1:
            raise ValueError("a fault of ours")

    engine = toy_engine(before_decode=fail)
    with pytest.raises(EngineUnavailable):
        await events_of(engine)
    await engine.aclose()
    stats = engine.stats()
    assert not engine.healthy()
    assert (stats.running_sequences, stats.waiting_sequences, stats.active_slots) == (0, 0, 0)
    assert stats.longest_wait_s == 0


async def test_a_close_that_nobody_waits_for_ends_what_runs() -> None:
    """A step takes long: whoever closes gives up, and a reader must not wait for ever."""
    begun, may_end = threading.Event(), threading.Event()

    def wait(_: Batch) -> None:
        begun.set()
        may_end.wait()

    engine = toy_engine(before_decode=wait)
    reading = asyncio.create_task(events_of(engine))
    try:
        while not begun.is_set():
            await asyncio.sleep(0)
        closing = asyncio.create_task(engine.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(EngineUnavailable):
            await asyncio.wait_for(reading, 30)
    finally:
        may_end.set()
        await engine.aclose()


async def test_a_job_that_no_slot_can_hold_is_refused_and_ends_nothing() -> None:
    engine = toy_engine()
    most = engine.card.context_tokens
    long = msgspec.structs.replace(job(), prompt_ids=(1,) * (most - 1))
    with pytest.raises(ContextLengthExceeded):
        engine.open([job(), long])
    assert await events_of(engine)
    assert engine.healthy()
    await engine.aclose()
