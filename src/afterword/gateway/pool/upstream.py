"""One upstream as the pool sees it: what it is, whether it answers, how much it has to do."""

from __future__ import annotations

import logging

import msgspec

from afterword.gateway.address import Address
from afterword.gateway.dialects.dialect import Facts
from afterword.gateway.transport.api import Api
from afterword.gateway.transport.connection import HttpClient

_log = logging.getLogger("afterword.upstream")


class UpstreamStats(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream at one moment; counters only grow.

    ``address`` has nothing secret. ``requests`` counts the requests that were sent, ``failures``
    those that were not answered as they should, ``in_flight`` those that are not answered yet.
    """

    address: str
    healthy: bool
    in_flight: int
    requests: int
    failures: int


class Upstream:
    """State of one address. Times are the event loop's seconds.

    ``facts`` None: it was never reached. ``draining``: it finishes what it has and gets no more.
    ``served`` requests were sent to it, ``failures`` of them it did not answer as it should.
    ``outstanding_tokens`` are those that it has yet to compute, as far as they are foreseen.
    """

    def __init__(
        self, address: Address, *, key: str | None, connect_s: float, answer_s: float
    ) -> None:
        self.address = address
        self.client = HttpClient(address, key=key, connect_s=connect_s)
        self.api = Api(self.client, address, timeout_s=answer_s)
        self.facts: Facts | None = None
        self.bit = 0
        self.up = False
        self.draining = False
        self.resting_until_s = 0.0
        self.outstanding_tokens = 0
        self.running = 0
        self.served = 0
        self.failures = 0
        self._refusals = 0

    def stats(self) -> UpstreamStats:
        """Its figures now."""
        return UpstreamStats(
            address=self.address.url,
            healthy=self.up,
            in_flight=self.running,
            requests=self.served,
            failures=self.failures,
        )

    def takes(self, now_s: float) -> bool:
        """Whether it gets requests now."""
        return self.up and not self.draining and now_s >= self.resting_until_s

    def went_up(self, model: str) -> None:
        """It answers."""
        if not self.up:
            _log.info("model %s: %s is up", model, self.address.origin)
            self._refusals = 0
        self.up = True

    def answered(self) -> None:
        """It did what it should."""
        self._refusals = 0

    def refused(self) -> int:
        """It answered, but with an error of its own; how often in a row by now."""
        self._refusals += 1
        return self._refusals

    def went_down(self, model: str, why: str) -> None:
        """It does not answer: no request is sent to it until a probe finds it up."""
        if self.up:
            _log.warning("model %s: %s is down: %s", model, self.address.origin, why)
        self.up = False


class Load:
    """What one request adds to an upstream's work; less when its first token is there."""

    def __init__(self, upstream: Upstream, prompt_tokens: int, completion_tokens: int) -> None:
        self._upstream = upstream
        self._prompt_tokens = prompt_tokens
        self._tokens = prompt_tokens + completion_tokens
        upstream.outstanding_tokens += self._tokens
        upstream.running += 1
        upstream.served += 1

    def prefilled(self) -> None:
        """The prompt is computed."""
        self._tokens -= self._prompt_tokens
        self._upstream.outstanding_tokens -= self._prompt_tokens
        self._prompt_tokens = 0

    def end(self) -> None:
        """Nothing is left to do."""
        self._upstream.outstanding_tokens -= self._tokens
        self._tokens = self._prompt_tokens = 0
        self._upstream.running -= 1
