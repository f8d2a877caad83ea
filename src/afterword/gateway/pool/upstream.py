"""One upstream of a pool: its facts, its health, its outstanding work."""

from __future__ import annotations

import logging

import msgspec

from afterword.core.errors import InvalidRequest
from afterword.core.job import Job
from afterword.gateway.address import Address
from afterword.gateway.dialects.dialect import Facts
from afterword.gateway.failures import ClientsFault
from afterword.gateway.redact import PARAMS, redacted
from afterword.gateway.transport.api import Api
from afterword.gateway.transport.client import HttpClient
from afterword.gateway.transport.rounds import ReadingRounds

_GRAMMAR_FIELD = "structured_outputs"
"""In which upstreams get every grammar, whatever the client called it."""
_log = logging.getLogger("afterword.upstream")


class UpstreamStats(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one upstream at one moment; counters only grow.

    ``address`` holds no secret. ``requests`` counts all requests sent, ``failures`` those of them
    that failed, ``in_flight`` those that still run.
    """

    address: str
    healthy: bool
    in_flight: int
    requests: int
    failures: int


class Upstream:
    """State of one address. Times are the event loop's seconds.

    ``facts`` is None until the first introspection. A ``draining`` upstream finishes its requests
    and gets no more. ``served`` counts the requests sent, ``failures`` those of them that failed.
    ``failed_in_a_row`` counts failures since the last success.
    ``outstanding_tokens`` estimates the tokens that it has yet to compute.
    """

    def __init__(
        self,
        address: Address,
        *,
        key: str | None,
        connect_s: float,
        answer_s: float,
        rounds: ReadingRounds | None,
    ) -> None:
        self.address = address
        self.client = HttpClient(address, key=key, connect_s=connect_s, rounds=rounds)
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
        self.failed_in_a_row = 0
        self._remarked: set[str] = set()
        self._complaint = ""

    def stats(self) -> UpstreamStats:
        """Returns its figures of now."""
        return UpstreamStats(
            address=self.address.url,
            healthy=self.up,
            in_flight=self.running,
            requests=self.served,
            failures=self.failures,
        )

    def takes(self, now_s: float) -> bool:
        """Returns whether it can get a request now."""
        return self.up and not self.draining and now_s >= self.resting_until_s

    def went_up(self, model: str) -> None:
        """Mark it as up."""
        if not self.up:
            _log.info("model %s: %s is up", model, self.address.origin)
            self.failed_in_a_row = 0
            self._complaint = ""
        self.up = True

    def answered(self) -> None:
        """Note a success: the count of failures in a row starts again."""
        self.failed_in_a_row = 0

    def failed(self) -> int:
        """Count a failure that may repeat itself. Returns the number of failures in a row."""
        self.failed_in_a_row += 1
        return self.failed_in_a_row

    def remark(self, model: str, oddity: str, given: str) -> None:
        """Log something odd in an answer that was used all the same; each kind only once."""
        if oddity not in self._remarked:
            self._remarked.add(oddity)
            _log.warning("model %s: %s: %s: %s", model, self.address.origin, oddity, given)

    def complain(self, model: str, why: str) -> None:
        """Log why a request failed, unless the one before failed for the same reason."""
        if why != self._complaint:
            _log.warning("model %s: %s failed: %s", model, self.address.origin, why)
        self._complaint = why

    def refusal(self, fault: ClientsFault, job: Job | None = None) -> InvalidRequest:
        """Returns what the client sees of the upstream's refusal: of a job, or of a text."""
        model = "" if self.facts is None else self.facts.model
        names = (model, self.address.model or "", self.address.host)
        said, param = fault.said, fault.param
        if job is not None and job.constraint is not None:
            field = job.constraint.field
            said = said.replace(_GRAMMAR_FIELD, field)
            param = field if param == _GRAMMAR_FIELD else param
        text = redacted(said, names) or "The server of this model refused the request."
        return InvalidRequest(text, param=param if param in PARAMS else None, code=fault.code)

    def went_down(self, model: str, why: str) -> None:
        """Mark it as down: it gets no request until a probe succeeds."""
        if self.up:
            _log.warning("model %s: %s is down: %s", model, self.address.origin, why)
        self.up = False


class Load:
    """One request's share of an upstream's outstanding tokens, from its start to ``end``."""

    def __init__(self, upstream: Upstream, prompt_tokens: int, completion_tokens: int) -> None:
        self._upstream = upstream
        self._prompt_tokens = prompt_tokens
        self._tokens = prompt_tokens + completion_tokens
        upstream.outstanding_tokens += self._tokens
        upstream.running += 1
        upstream.served += 1

    def prefilled(self) -> None:
        """Subtract the prompt: the first token is here. Idempotent."""
        self._tokens -= self._prompt_tokens
        self._upstream.outstanding_tokens -= self._prompt_tokens
        self._prompt_tokens = 0

    def end(self) -> None:
        """Subtract the rest: the request has ended."""
        self._upstream.outstanding_tokens -= self._tokens
        self._tokens = self._prompt_tokens = 0
        self._upstream.running -= 1
