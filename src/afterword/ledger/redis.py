"""Rate limits counted in Redis, so that they hold over all servers that name it.

One script admits a request against all limits of its key at once. Times are Redis' own, so the
servers' clocks need not agree. Valkey speaks the same protocol and is reached the same way.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from redis import Redis, RedisCluster, RedisError, Sentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from afterword.core.account import KeyTerms, Rates
from afterword.core.errors import ConfigError, LedgerUnavailable
from afterword.ledger.rate_limits import WINDOW_S, RateDecision, rates_of

T = TypeVar("T")
RedisClient: TypeAlias = "Redis | RedisCluster"

_LEASE_S = 60
"""A server that is silent for so long is dead: its requests no longer count as running."""
_TIMES_US = (int(WINDOW_S * 1e6), int(_LEASE_S * 1e6))
_PORT = 6379
_SENTINEL_PORT = 26379
_CONNECT_S = 3.0
_ANSWER_S = 5.0
_TIMEOUTS: dict[str, Any] = {"socket_connect_timeout": _CONNECT_S, "socket_timeout": _ANSWER_S}
_ERRORS = (RedisError, RedisClusterException)
_CLUSTER_CONNECTIONS = 1000
_CLUSTER_RETRIES = 1
"""Behind an error the cluster's servers are looked up again."""
_CLUSTER_S = 2.0
"""Two attempts take less than a request waits for its turn."""
_REST = 2
_MOST_TOGETHER = 1000
"""Leases that one script renews: others wait until it ends."""

# KEYS: window (sorted by time), costs (by request), running (sorted by end of lease).
# ARGV: window and lease in microseconds, then those of each script.
# Costs are subtracted from 0, because Lua's -x of 0 is '-0', which Redis rejects as an integer.
_EXPIRE = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local window, lease = tonumber(ARGV[1]), tonumber(ARGV[2])
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - window)) do
  local cost = tonumber(redis.call('HGET', KEYS[2], id) or 0)
  redis.call('HINCRBY', KEYS[2], '=', 0 - cost)
  redis.call('HDEL', KEYS[2], id)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - window)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
-- If the clock of Redis was set back, what seems to come later has come now.
local function bring_back(key, latest)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key, string.format('(%.0f', latest), '+inf')) do
    redis.call('ZADD', key, latest, id)
  end
end
bring_back(KEYS[1], now)
bring_back(KEYS[3], now + lease)
"""
_COUNT = """
local count = redis.call('ZCARD', KEYS[1])
local used = tonumber(redis.call('HGET', KEYS[2], '=') or 0)
local newest = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local age = newest[2] and now - tonumber(newest[2]) or window
"""

# Returns: requests and tokens used, age of newest.
_RATES = f"{_EXPIRE}{_COUNT}return {{count, used, age}}"

# ARGV: request, tokens, rpm, tpm, concurrent (-1: no limit).
# Returns: refused by ('': admitted), wait (-1: never), and what ``_RATES`` returns.
_ACQUIRE = (
    _EXPIRE
    + """
local tokens, rpm, tpm = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local concurrent = tonumber(ARGV[7])
-- A cluster's client asks again if an answer is late: what it asked first counts no more.
local before = redis.call('HGET', KEYS[2], ARGV[3])
if before then
  redis.call('ZREM', KEYS[1], ARGV[3])
  redis.call('HDEL', KEYS[2], ARGV[3])
  redis.call('HINCRBY', KEYS[2], '=', 0 - tonumber(before))
  redis.call('ZREM', KEYS[3], ARGV[3])
end
"""
    + _COUNT
    + """
if tpm >= 0 and tokens > tpm then
  return {'tpm', -1, count, used, age}
end
local more = rpm >= 0 and count + 1 - rpm or 0
local more_tokens = tpm >= 0 and used + tokens - tpm or 0
if more > 0 or more_tokens > 0 then
  local why = more > 0 and 'rpm' or 'tpm'
  local last = now - window
  for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if more <= 0 and more_tokens <= 0 then break end
    more = more - 1
    more_tokens = more_tokens - tonumber(redis.call('HGET', KEYS[2], id) or 0)
    last = tonumber(redis.call('ZSCORE', KEYS[1], id))
  end
  return {why, last + window - now, count, used, age}
end
if concurrent >= 0 and redis.call('ZCARD', KEYS[3]) >= concurrent then
  return {'concurrent', 1000000, count, used, age}
end
redis.call('ZADD', KEYS[1], now, ARGV[3])
redis.call('HSET', KEYS[2], ARGV[3], tokens)
redis.call('HINCRBY', KEYS[2], '=', tokens)
redis.call('ZADD', KEYS[3], now + lease, ARGV[3])
redis.call('PEXPIRE', KEYS[1], window / 500)
redis.call('PEXPIRE', KEYS[2], window / 500)
redis.call('PEXPIRE', KEYS[3], lease / 500)
return {'', 0, count + 1, used + tokens, 0}
"""
)

# ARGV: request, its cost (-1: take the request back).
_SETTLE = """
redis.call('ZREM', KEYS[3], ARGV[1])
local cost, tokens = redis.call('HGET', KEYS[2], ARGV[1]), tonumber(ARGV[2])
if not cost then return 0 end
if tokens < 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], ARGV[1])
  redis.call('HINCRBY', KEYS[2], '=', 0 - tonumber(cost))
else
  redis.call('HSET', KEYS[2], ARGV[1], tokens)
  redis.call('HINCRBY', KEYS[2], '=', tokens - tonumber(cost))
end
return 1
"""

# ARGV: lease in microseconds, requests.
_RENEW = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local lease = tonumber(ARGV[1])
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[3], 'XX', now + lease, ARGV[i])
end
return redis.call('PEXPIRE', KEYS[3], lease / 500)
"""


class RedisRateLimiter:
    """Limits counted in Redis; see ``rate_limits.RateLimiter``.

    Raises ``LedgerUnavailable`` if Redis does not answer: a limit that cannot be counted counts
    as reached. One thread asks all servers of a cluster. So one that was waited for in vain is not
    asked for ``_REST`` times as long as that took. ``clock`` returns seconds that never go back.
    """

    def __init__(self, client: RedisClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._acquire: Any = client.register_script(_ACQUIRE.encode())
        self._rates: Any = client.register_script(_RATES.encode())
        self._settle: Any = client.register_script(_SETTLE.encode())
        self._renew: Any = client.register_script(_RENEW.encode())
        self._running: dict[str, str] = {}
        self._lock = threading.Lock()
        self._resting_until_s: dict[str, float] = {}

    def answers(self) -> bool:
        """See ``rate_limits.RateLimiter``."""
        try:
            return bool(self._client.ping())
        except _ERRORS:
            return False

    def acquire(self, key_id: str, terms: KeyTerms, request_id: str, tokens: int) -> RateDecision:
        """See ``rate_limits.RateLimiter``."""
        limits = (-1 if n is None else n for n in (terms.rpm, terms.tpm, terms.concurrent))
        arguments = [*_TIMES_US, request_id, tokens, *limits]
        why, wait_us, count, used, age_us = self._answer(
            key_id, lambda: self._acquire(keys=_names(key_id), args=arguments)
        )
        rates = rates_of(terms, count, used, WINDOW_S - age_us / 1e6)
        if why:
            return RateDecision(rates, why.decode(), None if wait_us < 0 else wait_us / 1e6)
        with self._lock:
            self._running[request_id] = key_id
        return RateDecision(rates)

    def rates(self, key_id: str, terms: KeyTerms) -> Rates:
        """See ``rate_limits.RateLimiter``."""
        count, used, age_us = self._answer(
            key_id, lambda: self._rates(keys=_names(key_id), args=_TIMES_US)
        )
        return rates_of(terms, count, used, WINDOW_S - age_us / 1e6)

    def settle(self, key_id: str, request_id: str, tokens: int | None) -> None:
        """See ``rate_limits.RateLimiter``."""
        with self._lock:
            self._running.pop(request_id, None)
        arguments = [request_id, -1 if tokens is None else tokens]
        self._answer(key_id, lambda: self._settle(keys=_names(key_id), args=arguments))

    def renew(self) -> None:
        """See ``rate_limits.RateLimiter``. Each server that does not answer is asked once."""
        running: dict[str, list[str]] = {}
        with self._lock:
            for request_id, key_id in self._running.items():
                running.setdefault(key_id, []).append(request_id)
        away: dict[str, LedgerUnavailable] = {}
        for key_id, request_ids in running.items():
            server = self._server_of(key_id)
            if server in away:
                continue
            try:
                self._renew_all(key_id, request_ids)
            except LedgerUnavailable as error:
                away[server] = error
        if away:
            raise next(iter(away.values()))

    def _renew_all(self, key_id: str, request_ids: Sequence[str]) -> None:
        lease_us = int(_LEASE_S * 1e6)
        for start in range(0, len(request_ids), _MOST_TOGETHER):
            arguments = [lease_us, *request_ids[start : start + _MOST_TOGETHER]]
            self._answer(key_id, partial(self._renew, keys=_names(key_id), args=arguments))

    def _answer(self, key_id: str, call: Callable[[], T]) -> T:
        server, begun_s = self._server_of(key_id), self._clock()
        if begun_s < self._resting_until_s.get(server, begun_s):
            raise _uncounted()
        try:
            return call()
        except _ERRORS as error:
            if server:
                now_s = self._clock()
                self._resting_until_s[server] = now_s + _REST * (now_s - begun_s)
            raise _uncounted() from error

    def _server_of(self, key_id: str) -> str:
        """Returns the name of the cluster's server that counts a key; nothing without a cluster."""
        if not isinstance(self._client, RedisCluster):
            return ""
        try:
            node = self._client.get_node_from_key(_names(key_id)[0])  # type: ignore[no-untyped-call]
        except _ERRORS:
            # No server has it now.
            return ""
        return str(node.name)


def _uncounted() -> LedgerUnavailable:
    return LedgerUnavailable("Limits cannot be counted now.", retry_after_s=1)


def connect(url: str) -> RedisClient:
    """Returns a client; one server is connected to at first use.

    ``redis://``, ``rediss://`` (TLS), ``redis+unix://``, ``redis+cluster://HOST,HOST`` and
    ``redis+sentinel://HOST,HOST/SERVICE``, each also with ``valkey``. Raises ``ConfigError`` for
    any other URL, and if a cluster cannot be reached.
    """
    scheme, _, rest = re.sub("^valkey", "redis", url).partition("://")
    try:
        match scheme:
            case "redis" | "rediss":
                return Redis.from_url(f"{scheme}://{rest}", **_TIMEOUTS)
            case "redis+unix":
                return Redis.from_url(f"unix://{rest}", socket_timeout=_ANSWER_S)
            case "redis+cluster":
                return _cluster(rest)
            case "redis+sentinel":
                return _sentinel(rest)
    except _ERRORS as error:
        raise ConfigError("redis: the cluster cannot be reached") from error
    except ValueError as error:
        raise ConfigError("redis: the URL cannot be parsed") from error
    raise ConfigError("redis: expected a redis:// or valkey:// URL")


def _cluster(rest: str) -> RedisCluster:
    hosts, access, _ = _parts(rest, _PORT)
    nodes = [ClusterNode(host, port) for host, port in hosts]  # type: ignore[no-untyped-call]
    return RedisCluster(
        startup_nodes=nodes,
        max_connections=_CLUSTER_CONNECTIONS,
        retry=Retry(NoBackoff(), _CLUSTER_RETRIES),
        socket_connect_timeout=_CLUSTER_S,
        socket_timeout=_CLUSTER_S,
        **access,
    )


def _sentinel(rest: str) -> Redis:
    hosts, access, service = _parts(rest, _SENTINEL_PORT)
    if not service:
        raise ConfigError("redis: name the sentinel's service: redis+sentinel://HOST/SERVICE")
    of_sentinels = {"retry": Retry(NoBackoff(), 0), **_TIMEOUTS, **access}
    sentinel: Any = Sentinel(hosts, sentinel_kwargs=of_sentinels, **_TIMEOUTS, **access)  # type: ignore[no-untyped-call]
    client: Redis = sentinel.master_for(service)
    return client


def _parts(rest: str, port: int) -> tuple[list[tuple[str, int]], dict[str, Any], str]:
    """What follows ``://``: hosts with ports, username and password, path.

    A host without a port has ``port``.
    """
    credentials, _, others = rest.rpartition("@")
    given = urlsplit(f"//{credentials}@")
    access = {"username": given.username, "password": given.password}
    places, _, path = others.partition("/")
    hosts = [urlsplit(f"//{place}") for place in places.split(",")]
    if not all(host.hostname for host in hosts):
        raise ValueError("a host is missing")
    return (
        [(str(host.hostname), host.port or port) for host in hosts],
        {name: unquote(text) for name, text in access.items() if text},
        path.strip("/"),
    )


def _names(key_id: str) -> list[str]:
    """The Redis keys of one key. The braces make a cluster keep them on one server."""
    return [f"afterword:{{{key_id}}}:{part}" for part in ("window", "costs", "running")]
