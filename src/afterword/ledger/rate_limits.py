"""Limits per minute and on concurrent requests. A request passes all limits of its key or none.

A sliding window holds the requests of the last minute with their costs: the worst case while a
request runs, its real cost afterwards. So the limits are exact at every moment, and tokens that
a request did not use are free again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from afterword.core.account import KeyTerms, Rate, Rates

WINDOW_S = 60.0


class RateDecision(msgspec.Struct, frozen=True):
    """Whether a request was admitted.

    ``refused_by`` is the limit that refused it. ``wait_s`` is when it would pass; None: never.
    """

    rates: Rates
    refused_by: str | None = None
    wait_s: float | None = None


class RateLimiter(Protocol):
    """Counts requests against limits. Methods may wait for the network."""

    def answers(self) -> bool:
        """Whether it can be reached now."""

    def acquire(self, key_id: str, terms: KeyTerms, request_id: str, tokens: int) -> RateDecision:
        """Count a request against all limits of its key, or against none if one refuses it."""

    def rates(self, key_id: str, terms: KeyTerms) -> Rates:
        """Returns the limits of a key as they stand. Counts nothing."""

    def settle(self, key_id: str, request_id: str, tokens: int | None) -> None:
        """Set the real cost of an ended request; None takes the request back."""

    def renew(self) -> None:
        """Renew the leases of running requests; called well within a lease."""


class WindowEntry(msgspec.Struct):
    """A request in the window; ``tokens`` is its cost as far as known."""

    at_s: float
    tokens: int
    gone: bool = False


class _Window:
    """One key's last minute. Invariant: ``tokens`` and ``count`` sum over ``entries`` not gone."""

    def __init__(self) -> None:
        self.entries: deque[WindowEntry] = deque()
        self.running: dict[str, WindowEntry] = {}
        self.tokens = 0
        self.count = 0

    def expire(self, now_s: float) -> None:
        while self.entries and self.entries[0].at_s <= now_s - WINDOW_S:
            self.drop(self.entries.popleft())

    def drop(self, entry: WindowEntry) -> None:
        if not entry.gone:
            entry.gone = True
            self.tokens -= entry.tokens
            self.count -= 1

    def add(self, request_id: str, entry: WindowEntry) -> None:
        self.entries.append(entry)
        self.running[request_id] = entry
        self.tokens += entry.tokens
        self.count += 1

    def settle(self, request_id: str, tokens: int | None) -> None:
        entry = self.running.pop(request_id, None)
        if entry is None or entry.gone:
            return
        if tokens is None:
            self.drop(entry)
            return
        self.tokens += tokens - entry.tokens
        entry.tokens = tokens

    def wait_s(self, now_s: float, requests: int, tokens: int) -> float:
        """Returns the seconds until so many requests and tokens have left the window."""
        last_s = now_s - WINDOW_S
        for entry in self.entries:
            if requests <= 0 and tokens <= 0:
                break
            if not entry.gone:
                requests -= 1
                tokens -= entry.tokens
                last_s = entry.at_s
        return last_s + WINDOW_S - now_s

    def rates(self, terms: KeyTerms, now_s: float) -> Rates:
        newest = next((entry for entry in reversed(self.entries) if not entry.gone), None)
        reset_s = 0.0 if newest is None else newest.at_s + WINDOW_S - now_s
        return rates_of(terms, self.count, self.tokens, reset_s)


class MemoryRateLimiter:
    """Counts in this process. Its methods belong to one thread.

    ``clock`` gives seconds that never go back. It forgets a key a minute after its last request,
    so a minute's requests bound the memory.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self._swept_s = clock()

    def answers(self) -> bool:
        """See ``RateLimiter``."""
        return True

    def acquire(self, key_id: str, terms: KeyTerms, request_id: str, tokens: int) -> RateDecision:
        """See ``RateLimiter``."""
        now_s = self._clock()
        self._sweep(now_s)
        window = self._windows.setdefault(key_id, _Window())
        window.expire(now_s)
        decision = _refusal(window, terms, tokens, now_s)
        if decision is not None:
            return decision
        window.add(request_id, WindowEntry(now_s, tokens))
        return RateDecision(window.rates(terms, now_s))

    def rates(self, key_id: str, terms: KeyTerms) -> Rates:
        """See ``RateLimiter``."""
        now_s = self._clock()
        window = self._windows.get(key_id) or _Window()
        window.expire(now_s)
        return window.rates(terms, now_s)

    def settle(self, key_id: str, request_id: str, tokens: int | None) -> None:
        """See ``RateLimiter``."""
        window = self._windows.get(key_id)
        if window is not None:
            window.settle(request_id, tokens)

    def renew(self) -> None:
        """Do nothing: this process knows what it runs."""

    def _sweep(self, now_s: float) -> None:
        """Once a minute, forget idle keys."""
        if now_s < self._swept_s + WINDOW_S:
            return
        self._swept_s = now_s
        for key_id, window in list(self._windows.items()):
            window.expire(now_s)
            if not window.entries and not window.running:
                del self._windows[key_id]


def _refusal(window: _Window, terms: KeyTerms, tokens: int, now_s: float) -> RateDecision | None:
    rates = window.rates(terms, now_s)
    if terms.tpm is not None and tokens > terms.tpm:
        return RateDecision(rates, "tpm", None)
    more_requests = 0 if terms.rpm is None else window.count + 1 - terms.rpm
    more_tokens = 0 if terms.tpm is None else window.tokens + tokens - terms.tpm
    if more_requests > 0 or more_tokens > 0:
        wait_s = window.wait_s(now_s, more_requests, more_tokens)
        return RateDecision(rates, "rpm" if more_requests > 0 else "tpm", wait_s)
    if terms.concurrent is not None and len(window.running) >= terms.concurrent:
        return RateDecision(rates, "concurrent", 1.0)
    return None


def rates_of(terms: KeyTerms, requests: int, tokens: int, reset_s: float) -> Rates:
    """Returns the limits with so much in the window."""

    def rate(limit: int | None, used: int) -> Rate | None:
        # A limit that the operator lowered can be overdrawn.
        return None if limit is None else Rate(limit, max(limit - used, 0), max(reset_s, 0.0))

    return Rates(rate(terms.rpm, requests), rate(terms.tpm, tokens))
