"""The fair lock is acquired in the order of asking."""

from __future__ import annotations

import threading
import time

import pytest

from afterword.engine.llama.fair_lock import FairLock

LIMIT_S = 10.0


def waiting(lock: FairLock) -> int:
    return len(lock._waiting)


def until(lock: FairLock, count: int) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while waiting(lock) != count:
        assert time.monotonic() < deadline_s


def test_threads_acquire_it_in_the_order_in_which_they_asked() -> None:
    lock = FairLock()
    order: list[int] = []

    def ask(name: int) -> None:
        with lock:
            order.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(8)]
    with lock:
        for place, thread in enumerate(threads, 1):
            thread.start()
            until(lock, place)
        assert order == []
    for thread in threads:
        thread.join(LIMIT_S)
    assert order == list(range(8))


def test_a_thread_that_asks_again_waits_behind_the_others() -> None:
    lock = FairLock()
    order: list[str] = []

    def other() -> None:
        with lock:
            order.append("other")

    thread = threading.Thread(target=other)
    with lock:
        thread.start()
        until(lock, 1)
    with lock:
        order.append("again")
    thread.join(LIMIT_S)
    assert order == ["other", "again"]


def test_only_one_thread_holds_it() -> None:
    lock = FairLock()
    inside: list[None] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(200):
            with lock:
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


def test_an_error_releases_it() -> None:
    lock = FairLock()
    with pytest.raises(ValueError, match="decode"), lock:
        raise ValueError("decode")
    with lock:
        assert waiting(lock) == 0


def test_a_lock_is_acquired_without_waiting_only_if_it_is_free() -> None:
    lock = FairLock()
    with lock:
        assert not lock.acquire_if_free()
    assert lock.acquire_if_free()
    assert not lock.acquire_if_free()
    lock.release()
    assert lock.acquire_if_free()


def test_who_acquired_it_without_waiting_hands_it_to_those_who_wait() -> None:
    lock, entered = FairLock(), threading.Event()
    assert lock.acquire_if_free()

    def wait() -> None:
        with lock:
            entered.set()

    thread = threading.Thread(target=wait)
    thread.start()
    until(lock, 1)
    assert not entered.is_set()
    lock.release()
    thread.join(LIMIT_S)
    assert entered.is_set()
