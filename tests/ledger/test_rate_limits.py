"""Limits per minute, in memory and in Redis, are exact at every moment, against an oracle."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis import Redis, RedisCluster, RedisError
from redis.cluster import ClusterNode
from redis.connection import SSLConnection
from redis.sentinel import SentinelConnectionPool

from afterword.core.account import KeyTerms, Principal, Rates
from afterword.core.errors import ConfigError, LedgerUnavailable
from afterword.ledger import access, open_ledger
from afterword.ledger import redis as in_redis
from afterword.ledger.access import AccessLedger
from afterword.ledger.open_ledger import redis_limiter
from afterword.ledger.rate_limits import WINDOW_S, MemoryRateLimiter, RateLimiter
from afterword.ledger.redis import RedisRateLimiter, connect
from ledger.values import Hand
from support.examples import examples

START_S = 1000


@dataclass
class Oracle:
    """The limits, spelled out: sums over the last minute."""

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
    """A rate limiter of one kind, with a clock that tests set."""

    def __init__(self, limiter: RateLimiter, move: Callable[[float], None]) -> None:
        self.limiter = limiter
        self.move = move


@pytest.fixture(scope="module")
def redis_client(redis_url: str) -> Iterator[Redis]:
    client = connect(redis_url)
    assert isinstance(client, Redis)
    yield client
    client.close()


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.database)])
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Bench]:
    """Makes fresh rate limiters."""
    if request.param == "memory":

        def in_memory() -> Bench:
            hand = Hand(START_S)
            return Bench(MemoryRateLimiter(hand), lambda now_s: setattr(hand, "now_s", now_s))

        return in_memory
    client: Redis = request.getfixturevalue("redis_client")
    # The scripts ask Redis for the time; here they ask for a list that has the same shape.
    for name in ("_ACQUIRE", "_RATES", "_RENEW"):
        script = getattr(in_redis, name).replace("'TIME'", "'LRANGE', 'clock', 0, 1")
        monkeypatch.setattr(in_redis, name, script)

    def over_redis() -> Bench:
        client.flushall()

        def move(now_s: float) -> None:
            client.delete("clock")
            client.rpush("clock", int(now_s), round((now_s % 1) * 1e6))

        move(START_S)
        return Bench(RedisRateLimiter(client), move)

    return over_redis


def one_asks(limiter: RateLimiter, oracle: Oracle, request_id: str, tokens: int) -> None:
    """The decision and its numbers agree with the oracle."""
    terms, now_s = oracle.terms, oracle.now_s
    admitted = oracle.admits(tokens, now_s)
    decision = limiter.acquire("k", terms, request_id, tokens)
    assert (decision.refused_by is None) == admitted
    if admitted:
        oracle.seen[request_id] = (now_s, tokens)
        oracle.running.add(request_id)
    elif decision.refused_by == "concurrent":
        assert len(oracle.running) >= (terms.concurrent or 0)
    elif decision.wait_s is None:
        assert terms.tpm is not None
        assert tokens > terms.tpm
    else:
        free = Oracle(KeyTerms(name="k", rpm=terms.rpm, tpm=terms.tpm), seen=oracle.seen)
        assert free.admits(tokens, now_s + decision.wait_s)
        assert not free.admits(tokens, now_s + decision.wait_s - 0.001)
    rates_agree(decision.rates, oracle)


def rates_agree(rates: Rates, oracle: Oracle) -> None:
    """The state of the limits agrees with the oracle."""
    terms, now_s = oracle.terms, oracle.now_s
    requests, used = oracle.used(now_s)
    for rate, limit, taken in (
        (rates.requests, terms.rpm, requests),
        (rates.tokens, terms.tpm, used),
    ):
        assert (rate is None) == (limit is None)
        if rate is not None and limit is not None:
            assert (rate.limit, rate.remaining) == (limit, limit - taken)
            assert oracle.used(now_s + rate.reset_s) == (0, 0)
            assert rate.reset_s == 0 or oracle.used(now_s + rate.reset_s - 0.001) != (0, 0)


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
# What a request did not use is not given back a second time when it leaves the window.
@example(
    rpm=None, tpm=100, concurrent=None,
    steps=[("ask", 60), ("settle", 10), ("wait", 40), ("ask", 1), ("wait", 40), ("ask", 1)],
)  # fmt: skip
# Nobody waits for a request that was taken back, and it leaves once.
@example(
    rpm=None, tpm=100, concurrent=None,
    steps=[("ask", 1), ("wait", 1), ("ask", 50), ("release", 0), ("ask", 100), ("wait", 1),
           ("ask", 60), ("ask", 60), ("wait", 40), ("wait", 20), ("ask", 1)],
)  # fmt: skip
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
    """A refusal says exactly how long to wait."""
    terms = KeyTerms(name="k", rpm=rpm, tpm=tpm, concurrent=concurrent)
    oracle = Oracle(terms)
    made = bench()
    limiter = made.limiter
    ids = map(str, itertools.count())
    for step, number in steps:
        rates_agree(limiter.rates("k", terms), oracle)
        match step:
            case "ask":
                one_asks(made.limiter, oracle, next(ids), number)
            case "settle" if oracle.running:
                request_id = min(oracle.running)
                at_s, reserved = oracle.seen[request_id]
                spent = min(number, reserved)
                limiter.settle("k", request_id, spent)
                oracle.seen[request_id] = (at_s, spent)
                oracle.running.remove(request_id)
            case "release" if oracle.running:
                request_id = max(oracle.running)
                limiter.settle("k", request_id, None)
                oracle.running.remove(request_id)
                del oracle.seen[request_id]
            case "wait":
                # Less than a lease of Redis at once.
                oracle.now_s += number
                made.move(oracle.now_s)
                if isinstance(limiter, RedisRateLimiter):
                    limiter.renew()


def test_keys_do_not_know_each_other(bench: Callable[[], Bench]) -> None:
    limiter = bench().limiter
    terms = KeyTerms(name="k", rpm=1)
    assert limiter.acquire("a", terms, "1", 1).refused_by is None
    assert limiter.acquire("b", terms, "2", 1).refused_by is None
    assert limiter.acquire("a", terms, "3", 1).refused_by == "rpm"


def test_a_hundred_threads_share_what_is_left(redis_url: str) -> None:
    """Ten servers on one Redis admit exactly the tokens that there are."""
    shared = [redis_limiter(redis_url) for _ in range(10)]
    terms = KeyTerms(name="k", tpm=1000, rpm=10_000)
    with ThreadPoolExecutor(20) as threads:
        decisions = list(
            threads.map(lambda i: shared[i % 10].acquire("race", terms, f"race-{i}", 7), range(400))
        )
    assert sum(decision.refused_by is None for decision in decisions) == 1000 // 7


def test_what_a_dead_server_ran_no_longer_counts(
    bench: Callable[[], Bench], request: pytest.FixtureRequest
) -> None:
    """In Redis, after a lease. A server that renews its leases keeps its place."""
    made = bench()
    if isinstance(made.limiter, MemoryRateLimiter):
        return
    terms = KeyTerms(name="k", concurrent=1)
    assert made.limiter.acquire("k", terms, "dead", 1).refused_by is None
    made.move(START_S + 50)
    assert made.limiter.acquire("k", terms, "early", 1).refused_by == "concurrent"
    made.move(START_S + 61)
    assert made.limiter.acquire("k", terms, "later", 1).refused_by is None


@pytest.mark.database
def test_an_admission_that_is_asked_for_twice_counts_once(redis_client: Redis) -> None:
    """As a cluster's client does if an answer is late."""
    redis_client.flushall()
    limiter = RedisRateLimiter(redis_client)
    terms = KeyTerms(name="k", rpm=1, tpm=100, concurrent=1)
    for _ in range(2):
        decision = limiter.acquire("k", terms, "a", 60)
        assert decision.refused_by is None
        assert decision.rates.tokens is not None
        assert decision.rates.tokens.remaining == 40
    limiter.settle("k", "a", None)
    assert limiter.acquire("k", terms, "b", 100).refused_by is None


class Cluster(RedisCluster):
    """Servers are named by the first letter of a key. Those in ``silent`` answer after seconds.

    ``asked`` has each call: the server, and the arguments of the script.
    """

    def __init__(self, hand: Hand) -> None:
        self.silent: dict[str, float] = {}
        self.asked: list[tuple[str, list[object]]] = []
        self._hand = hand

    def get_node_from_key(self, key: str, replica: bool = False) -> ClusterNode:
        node: ClusterNode = ClusterNode(key.partition("{")[2][0], 1)  # type: ignore[no-untyped-call]
        return node

    def register_script(self, script: Any) -> Any:
        def run(keys: list[str], args: list[object]) -> object:
            server = keys[0].partition("{")[2][0]
            self.asked.append((server, args))
            if server in self.silent:
                self._hand.now_s += self.silent[server]
                raise RedisError
            return 1 if b"'XX'" in script else [b"", 0, 1, 1, 0]

        return run


def test_leases_are_renewed_past_a_server_that_is_away() -> None:
    """It is asked once for all of its keys, and a key once for all of its requests."""
    hand = Hand(START_S)
    cluster = Cluster(hand)
    limiter = RedisRateLimiter(cluster, hand)
    terms = KeyTerms(name="k", concurrent=9)
    keys = ("a1", "b1", "a2", "b1", "a1", "c1", "b2")
    for number, key_id in enumerate(keys):
        limiter.acquire(key_id, terms, f"r{number}", 1)
    cluster.asked.clear()
    cluster.silent["a"] = 4.0
    with pytest.raises(LedgerUnavailable):
        limiter.renew()
    lease_us, *renewed = cluster.asked[0][1]
    assert (lease_us, renewed) == (60_000_000, ["r0", "r4"])
    assert [(server, args[1:]) for server, args in cluster.asked] == [
        ("a", ["r0", "r4"]), ("b", ["r1", "r3"]), ("c", ["r5"]), ("b", ["r6"]),
    ]  # fmt: skip
    assert hand() == START_S + 4


def test_a_silent_server_of_a_cluster_rests() -> None:
    """One thread asks all servers. It does not wait for the same one all the time."""
    hand = Hand(START_S)
    cluster = Cluster(hand)
    limiter = RedisRateLimiter(cluster, hand)
    terms = KeyTerms(name="k", rpm=9)

    def asked(key_id: str) -> int:
        before = len(cluster.asked)
        with suppress(LedgerUnavailable):
            limiter.acquire(key_id, terms, "r", 1)
        return len(cluster.asked) - before

    cluster.silent["a"] = 4.0
    assert asked("a1") == 1
    for _ in range(9):
        assert (asked("a2"), asked("b1")) == (0, 1)
    with pytest.raises(LedgerUnavailable):
        limiter.rates("a1", terms)
    hand.now_s += 8
    assert (asked("a2"), asked("a2")) == (1, 0)
    # Nobody waited for one that refuses at once, as while another takes its place.
    hand.now_s += 8
    cluster.silent["a"] = 0.0
    assert [asked("a1") for _ in range(3)] == [1, 1, 1]
    del cluster.silent["a"]
    assert asked("a1") == 1


def test_many_leases_are_renewed_by_several_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_redis, "_MOST_TOGETHER", 2)
    hand = Hand(START_S)
    cluster = Cluster(hand)
    limiter = RedisRateLimiter(cluster, hand)
    for number in range(5):
        limiter.acquire("a", KeyTerms(name="k", concurrent=9), f"r{number}", 1)
    cluster.asked.clear()
    limiter.renew()
    assert [args[1:] for _, args in cluster.asked] == [["r0", "r1"], ["r2", "r3"], ["r4"]]


def test_one_server_that_is_away_is_asked_for_one_key() -> None:
    asked: list[str] = []

    class One:
        def register_script(self, script: bytes) -> Callable[..., object]:
            def run(keys: list[str], args: list[object]) -> object:
                if b"'XX'" not in script:
                    return [b"", 0, 1, 1, 0]
                asked.append(keys[0])
                raise RedisError

            return run

    limiter = RedisRateLimiter(cast("Redis", One()))
    for key_id in ("a", "b", "c"):
        limiter.acquire(key_id, KeyTerms(name="k", concurrent=1), key_id, 1)
    for times in (1, 2):
        with pytest.raises(LedgerUnavailable):
            limiter.renew()
        assert len(asked) == times


async def test_leases_that_are_not_renewed_are_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(open_ledger, "_SYNC_S", 0)
    monkeypatch.setattr(open_ledger, "_RENEW_ROUNDS", 1)
    synced: Future[None] = Future()
    synced.set_result(None)
    upkeep = asyncio.create_task(
        open_ledger._keep_up(
            cast("AccessLedger", SimpleNamespace(sync=lambda: synced)),
            redis_limiter("redis://127.0.0.1:9/0"),
            cast("ThreadPoolExecutor", SimpleNamespace(submit=_away)),
        )
    )
    async with asyncio.timeout(10):
        while "leases in redis are not renewed" not in caplog.text:
            await asyncio.sleep(0)
    upkeep.cancel()


def _away(_: object) -> Future[None]:
    failed: Future[None] = Future()
    failed.set_exception(LedgerUnavailable("Limits cannot be counted now."))
    return failed


def test_a_clock_that_is_set_back_holds_nobody_up(
    bench: Callable[[], Bench], request: pytest.FixtureRequest
) -> None:
    """Redis counts by its own date. What it has counted counts for a minute, not for hours."""
    made = bench()
    if isinstance(made.limiter, MemoryRateLimiter):
        return
    terms = KeyTerms(name="k", rpm=2, tpm=100, concurrent=2)
    assert made.limiter.acquire("k", terms, "a", 10).refused_by is None
    assert made.limiter.acquire("k", terms, "b", 10).refused_by is None
    made.limiter.settle("k", "a", 10)
    made.move(START_S - 900)
    refused = made.limiter.acquire("k", terms, "c", 10)
    assert (refused.refused_by, refused.wait_s) == ("rpm", WINDOW_S)
    assert refused.rates.requests is not None
    assert refused.rates.requests.reset_s == WINDOW_S
    made.move(START_S - 900 + 61)
    more = KeyTerms(name="k", rpm=2, tpm=100, concurrent=1)
    assert made.limiter.acquire("k", more, "c", 91).refused_by is None


def test_memory_forgets_keys_that_do_nothing() -> None:
    hand = Hand(START_S)
    limiter = MemoryRateLimiter(hand)
    terms = KeyTerms(name="k", tpm=5)
    for i in range(100):
        limiter.acquire(f"k{i}", terms, f"r{i}", 1)
        limiter.settle(f"k{i}", f"r{i}", 1)
    assert len(limiter._windows) == 100
    hand.now_s += WINDOW_S + 1
    limiter.acquire("k", terms, "r", 1)
    assert list(limiter._windows) == ["k"]


def test_a_redis_that_is_away_admits_nobody() -> None:
    limiter = redis_limiter("redis://127.0.0.1:9/0")
    assert not limiter.answers()
    with pytest.raises(LedgerUnavailable):
        limiter.acquire("k", KeyTerms(name="k", rpm=1), "r", 1)
    with pytest.raises(LedgerUnavailable):
        limiter.rates("k", KeyTerms(name="k", rpm=1))


@pytest.mark.parametrize("silent", [True, False])
async def test_an_answer_goes_out_without_the_limits_that_cannot_be_seen(
    silent: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Redis that is away, or silent, changes no answer that counts nothing."""
    monkeypatch.setattr(access, "_LOOK_S", 0)
    ends = threading.Event()
    keyring = SimpleNamespace(terms=lambda _: KeyTerms(name="k", rpm=1))
    with ThreadPoolExecutor(1) as thread:
        if silent:
            thread.submit(ends.wait)
        ledger = AccessLedger(
            cast("Any", SimpleNamespace(keyring=keyring)),
            cast("Any", None),
            redis_limiter("redis://127.0.0.1:9/0"),
            policy=access.Policy(),
            clocks=access.Clocks(Hand(), Hand()),
            limiter_thread=thread,
        )
        assert await ledger.rates(Principal("id", "k")) == Rates()
        ends.set()


def test_a_silent_redis_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(open_ledger, "_END_S", 0)
    answers = threading.Event()
    thread = ThreadPoolExecutor(1)
    thread.submit(answers.wait)
    waiting = thread.submit(lambda: None)
    waiting.add_done_callback(access._log_unsettled)
    waiting.add_done_callback(lambda _: answers.set())
    open_ledger._end(thread)
    assert waiting.cancelled()
    (line,) = caplog.records
    assert "redis does not answer" in line.getMessage()


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "memory://",
        "memcached://x",
        "redis+sentinel://h:1",
        "redis+cluster://h:x",
        "redis+sentinel://:1/s",
        "redis+cluster://127.0.0.1:9",
    ],
)
def test_what_is_no_redis_is_said_at_start(url: str) -> None:
    with pytest.raises(ConfigError, match="redis: "):
        redis_limiter(url)


@pytest.mark.parametrize(
    ("url", "connects"),
    [("valkey://h", {"host": "h"}), ("redis://:p@h:7/2", {"password": "p", "port": 7, "db": 2}),
     ("rediss://h", {"host": "h"}), ("redis+unix:///s?db=3", {"path": "/s", "db": 3}),
     ("valkey+unix:///s", {"path": "/s"})],
)  # fmt: skip
def test_one_server(url: str, connects: dict[str, Any]) -> None:
    client = connect(url)
    assert isinstance(client, Redis)
    pool = client.connection_pool
    assert pool.connection_kwargs.items() >= connects.items()
    assert (pool.connection_class is SSLConnection) == url.startswith("rediss")


def test_a_server_that_sentinels_name() -> None:
    client = connect("redis+sentinel://u:p%40@one:7,two/mine")
    assert isinstance(client, Redis)
    pool = client.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert pool.service_name == "mine"
    sentinels = [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]
    assert [(one["host"], one["port"]) for one in sentinels] == [("one", 7), ("two", 26379)]
    for connects in (pool.connection_kwargs, *sentinels):
        assert (connects["username"], connects["password"]) == ("u", "p@")


def test_nobody_waits_long_for_a_silent_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver would ask ten times more. Others wait in front of the same thread."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(in_redis, "RedisCluster", lambda **more: given.update(more))
    connect("redis+cluster://h:1,i")
    attempts = 1 + given["retry"].get_retries()
    assert attempts * given["socket_timeout"] < access._CLAIM_S
    assert attempts * given["socket_connect_timeout"] < access._CLAIM_S
    pool = cast("Redis", connect("redis+sentinel://one/mine")).connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    (sentinel,) = pool.sentinel_manager.sentinels
    assert sentinel.connection_pool.connection_kwargs["retry"].get_retries() == 0


def test_a_missing_driver_is_said_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "afterword.ledger.redis")
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match="pip install"):
        redis_limiter("redis://h")
