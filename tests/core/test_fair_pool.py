"""A fair pool does one piece of work at a time, and owners take turns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from afterword.core.fair_pool import FairPool


class Work:
    """Pieces of work that begin in an order, and end when they may."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.together = 0
        self.most_together = 0
        self._lock = threading.Lock()
        self.may_end = threading.Event()

    def piece(self, name: str) -> Callable[[], str]:
        def work() -> str:
            with self._lock:
                self.begun.append(name)
                self.together += 1
                self.most_together = max(self.together, self.most_together)
            self.may_end.wait()
            with self._lock:
                self.together -= 1
            return name

        return work


async def _started(pool: FairPool, work: Work, names: list[str]) -> list[asyncio.Task[str]]:
    """Queue pieces, each for the owner in front of its dash; the first one runs."""
    made = [
        asyncio.create_task(pool.run(name.partition("-")[0], work.piece(name))) for name in names
    ]
    while pool.waiting < len(names) - 1:
        await asyncio.sleep(0)
    return made


async def test_owners_take_turns() -> None:
    """Whoever asks for much waits behind himself, and nobody behind him for more than one piece."""
    pool, work = FairPool("test"), Work()
    names = ["a-1", "a-2", "a-3", "a-4", "b-1", "c-1", "b-2"]
    running = await _started(pool, work, names)
    work.may_end.set()
    assert await asyncio.gather(*running) == names
    assert work.begun == ["a-1", "a-2", "b-1", "c-1", "a-3", "b-2", "a-4"]
    assert work.most_together == 1
    assert pool.waiting == 0
    assert await pool.run("a", work.piece("later")) == "later"


async def test_work_that_waits_can_be_given_up() -> None:
    pool, work = FairPool("test"), Work()
    running = await _started(pool, work, ["a-1", "a-2", "b-1"])
    running[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await running[1]
    assert pool.waiting == 1
    work.may_end.set()
    assert await running[2] == "b-1"
    assert work.begun == ["a-1", "b-1"]


async def test_work_that_runs_keeps_the_thread_to_its_end() -> None:
    pool, work = FairPool("test"), Work()
    running = await _started(pool, work, ["a-1", "b-1"])
    running[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await running[0]
    assert pool.waiting == 1
    work.may_end.set()
    assert await running[1] == "b-1"
    assert work.most_together == 1


async def test_a_turn_that_comes_with_a_cancellation_is_passed_on() -> None:
    pool, work = FairPool("test"), Work()
    running = await _started(pool, work, ["a-1", "a-2", "b-1"])
    running[0].add_done_callback(lambda _: running[1].cancel())
    work.may_end.set()
    assert await running[0] == "a-1"
    assert await running[2] == "b-1"
    assert pool.waiting == 0


async def test_errors_are_those_of_the_work() -> None:
    pool = FairPool("test")

    def fail() -> str:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await pool.run("a", fail)
    assert await pool.run("a", lambda: "next") == "next"
