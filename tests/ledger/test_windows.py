"""Limits per minute: exact at every moment, against an oracle, in memory and in Redis."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from limits.storage import RedisStorage, storage_from_string

from afterword.core.account import KeyTerms
from afterword.core.errors import ConfigError, LedgerUnavailable
from afterword.ledger import redis as in_redis
from afterword.ledger.redis import RedisWindows, open_windows
from afterword.ledger.windows import WINDOW_S, MemoryWindows, Windows
from ledger.values import Hand
from support.examples import examples

START_S = 1000


@dataclass
class Oracle:
    """The limits as one would say them: sums over the last minute."""

    terms: KeyTerms
    now_s: float = START_S
    seen: dict[str, tuple[float, int]] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)

    def used(self, now_s: float) -> tuple[int, int]:
        inside = [tokens for at, tokens in self.seen.values() if at > now_s - WINDOW_S]
        return len(inside), sum(inside)

    def admits(self, tokens: int, now_s: float) -> bool:
        requests, used = self.used(now_s)
        terms = self.terms
        return (
            (terms.rpm is None or requests + 1 <= terms.rpm)
            and (terms.tpm is None or used + tokens <= terms.tpm)
            and (terms.concurrent is None or len(self.running) < terms.concurrent)
        )


class Bench:
    """Windows of one kind, whose clock is moved by hand."""

    def __init__(self, windows: Windows, move: Callable[[float], None]) -> None:
        self.windows = windows
        self.move = move


@pytest.fixture(scope="module")
def redis_storage(redis_url: str) -> Iterator[RedisStorage]:
    storage = storage_from_string(redis_url)
    assert isinstance(storage, RedisStorage)
    yield storage
    storage.get_connection().close()  # type: ignore[attr-defined]


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.database)])
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Bench]:
    """Makes windows in which nothing happened yet."""
    if request.param == "memory":

        def in_memory() -> Bench:
            hand = Hand(START_S)
            return Bench(MemoryWindows(hand), lambda now_s: setattr(hand, "now_s", now_s))

        return in_memory
    storage: RedisStorage = request.getfixturevalue("redis_storage")
    client = storage.get_connection()
    # The scripts ask Redis for the time; here they ask for a list that has the same shape.
    for name in ("_ACQUIRE", "_RENEW"):
        script = getattr(in_redis, name).replace("'TIME'", "'LRANGE', 'clock', 0, 1")
        monkeypatch.setattr(in_redis, name, script)

    def over_redis() -> Bench:
        client.flushall()  # type: ignore[attr-defined]

        def move(now_s: float) -> None:
            client.delete("clock")
            client.rpush("clock", int(now_s), round((now_s % 1) * 1e6))  # type: ignore[attr-defined]

        move(START_S)
        return Bench(RedisWindows(storage), move)

    return over_redis


def one_asks(windows: Windows, oracle: Oracle, request_id: str, tokens: int) -> None:
    """The verdict is the oracle's, and everything that it says is true."""
    terms, now_s = oracle.terms, oracle.now_s
    admitted = oracle.admits(tokens, now_s)
    verdict = windows.acquire("k", terms, request_id, tokens)
    assert (verdict.refused_by is None) == admitted
    if admitted:
        oracle.seen[request_id] = (now_s, tokens)
        oracle.running.add(request_id)
    elif verdict.refused_by == "concurrent":
        assert len(oracle.running) >= (terms.concurrent or 0)
    elif verdict.wait_s is None:
        assert terms.tpm is not None
        assert tokens > terms.tpm
    else:
        free = Oracle(KeyTerms(name="k", rpm=terms.rpm, tpm=terms.tpm), seen=oracle.seen)
        assert free.admits(tokens, now_s + verdict.wait_s)
        assert not free.admits(tokens, now_s + verdict.wait_s - 0.001)
    requests, used = oracle.used(now_s)
    for rate, limit, taken in (
        (verdict.rates.requests, terms.rpm, requests),
        (verdict.rates.tokens, terms.tpm, used),
    ):
        assert (rate is None) == (limit is None)
        if rate is not None and limit is not None:
            assert (rate.limit, rate.remaining) == (limit, limit - taken)
            assert oracle.used(now_s + rate.reset_s) == (0, 0)


limits = st.none() | st.integers(1, 6)
steps = st.lists(
    st.tuples(st.just("ask"), st.integers(0, 60))
    | st.tuples(st.just("settle"), st.integers(0, 60))
    | st.tuples(st.just("release"), st.just(0))
    | st.tuples(st.just("wait"), st.integers(1, 40)),
    max_size=30,
)


@given(rpm=limits, tpm=st.none() | st.integers(1, 100), concurrent=limits, steps=steps)
@example(rpm=None, tpm=None, concurrent=None, steps=[("ask", 0), ("release", 0)])
@example(rpm=None, tpm=None, concurrent=None, steps=[("ask", 0), ("wait", 60), ("ask", 1)])
@settings(
    max_examples=examples(150), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_what_is_admitted_is_what_fits(
    bench: Callable[[], Bench],
    rpm: int | None,
    tpm: int | None,
    concurrent: int | None,
    steps: list[tuple[str, int]],
) -> None:
    """And a refusal says truly how long to wait."""
    terms = KeyTerms(name="k", rpm=rpm, tpm=tpm, concurrent=concurrent)
    oracle = Oracle(terms)
    made = bench()
    windows = made.windows
    ids = map(str, itertools.count())
    for step, number in steps:
        match step:
            case "ask":
                one_asks(made.windows, oracle, next(ids), number)
            case "settle" if oracle.running:
                request_id = min(oracle.running)
                at_s, reserved = oracle.seen[request_id]
                spent = min(number, reserved)
                windows.settle("k", request_id, spent)
                oracle.seen[request_id] = (at_s, spent)
                oracle.running.remove(request_id)
            case "release" if oracle.running:
                request_id = max(oracle.running)
                windows.settle("k", request_id, None)
                oracle.running.remove(request_id)
                del oracle.seen[request_id]
            case "wait":
                # Less than a lease of Redis at once.
                oracle.now_s += number
                made.move(oracle.now_s)
                if isinstance(windows, RedisWindows):
                    windows.renew()


def test_keys_do_not_know_each_other(bench: Callable[[], Bench]) -> None:
    windows = bench().windows
    terms = KeyTerms(name="k", rpm=1)
    assert windows.acquire("a", terms, "1", 1).refused_by is None
    assert windows.acquire("b", terms, "2", 1).refused_by is None
    assert windows.acquire("a", terms, "3", 1).refused_by == "rpm"


def test_a_hundred_threads_share_what_is_left(redis_url: str) -> None:
    """Ten servers' worth of connections on one Redis: not one token more than there is."""
    shared = [open_windows(redis_url) for _ in range(10)]
    terms = KeyTerms(name="k", tpm=1000, rpm=10_000)
    with ThreadPoolExecutor(20) as threads:
        verdicts = list(
            threads.map(lambda i: shared[i % 10].acquire("race", terms, f"race-{i}", 7), range(400))
        )
    assert sum(verdict.refused_by is None for verdict in verdicts) == 1000 // 7


def test_what_a_dead_server_ran_no_longer_counts(
    bench: Callable[[], Bench], request: pytest.FixtureRequest
) -> None:
    """In Redis, a lease later; a server that says that it lives keeps its place."""
    made = bench()
    if isinstance(made.windows, MemoryWindows):
        return
    terms = KeyTerms(name="k", concurrent=1)
    assert made.windows.acquire("k", terms, "dead", 1).refused_by is None
    made.move(START_S + 50)
    assert made.windows.acquire("k", terms, "early", 1).refused_by == "concurrent"
    made.move(START_S + 61)
    assert made.windows.acquire("k", terms, "later", 1).refused_by is None


def test_memory_forgets_keys_that_do_nothing() -> None:
    hand = Hand(START_S)
    windows = MemoryWindows(hand)
    terms = KeyTerms(name="k", tpm=5)
    for i in range(100):
        windows.acquire(f"k{i}", terms, f"r{i}", 1)
        windows.settle(f"k{i}", f"r{i}", 1)
    assert len(windows._windows) == 100
    hand.now_s += WINDOW_S + 1
    windows.acquire("k", terms, "r", 1)
    assert list(windows._windows) == ["k"]


def test_a_redis_that_is_away_admits_nobody() -> None:
    windows = open_windows("redis://127.0.0.1:9/0")
    assert not windows.answers()
    with pytest.raises(LedgerUnavailable):
        windows.acquire("k", KeyTerms(name="k", rpm=1), "r", 1)


@pytest.mark.parametrize("url", ["nonsense", "memory://", "memcached://x"])
def test_what_is_no_redis_is_said_at_start(url: str) -> None:
    with pytest.raises(ConfigError, match="redis: "):
        open_windows(url)
