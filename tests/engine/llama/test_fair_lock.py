"""FairLock at the threads that compute."""

from __future__ import annotations

import threading
import time

import pytest

from afterword.engine.llama.fair_lock import FairLock

LIMIT_S = 10.0


def waiting(turns: FairLock) -> int:
    return len(turns._waiting)


def until(turns: FairLock, count: int) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while waiting(turns) != count:
        assert time.monotonic() < deadline_s


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    turns = FairLock()
    order: list[int] = []

    def ask(name: int) -> None:
        with turns:
            order.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(8)]
    with turns:
        for place, thread in enumerate(threads, 1):
            thread.start()
            until(turns, place)
        assert order == []
    for thread in threads:
        thread.join(LIMIT_S)
    assert order == list(range(8))


def test_who_asks_again_goes_behind_who_waits() -> None:
    turns = FairLock()
    order: list[str] = []

    def other() -> None:
        with turns:
            order.append("other")

    thread = threading.Thread(target=other)
    with turns:
        thread.start()
        until(turns, 1)
    with turns:
        order.append("again")
    thread.join(LIMIT_S)
    assert order == ["other", "again"]


def test_only_one_has_its_turn() -> None:
    turns = FairLock()
    inside: list[None] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(200):
            with turns:
                inside.append(None)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert max(most) == 1
    assert len(most) == 800


def test_a_turn_ends_with_an_error() -> None:
    turns = FairLock()
    with pytest.raises(ValueError, match="decode"), turns:
        raise ValueError("decode")
    with turns:
        assert waiting(turns) == 0
