"""The pool: which upstream of a model gets a request, which are healthy, which are resting."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import msgspec

from afterword.core.errors import ConfigError, EngineOverloaded, EngineUnavailable
from afterword.core.faults import in_one_line
from afterword.gateway.address import Address
from afterword.gateway.dialects.dialect import Dialect, Facts
from afterword.gateway.failures import (
    ClientsFault,
    ConnectFailed,
    Incapable,
    Overloaded,
    Refused,
    Silent,
    UpstreamFailure,
    nobody_left,
)
from afterword.gateway.pool.prefixes import PrefixMap
from afterword.gateway.pool.upstream import Load, Upstream
from afterword.gateway.transport.rounds import ReadingRounds

_log = logging.getLogger("afterword.upstream")
T = TypeVar("T")

_TYPICAL_TOKENS = 256
"""The most tokens that an answer counts as outstanding; few answers reach ``max_tokens``."""
_LEAST_PROBE_S = 1.0
_LEAST_REST_S = 0.1
_MOST_FAILURES = 3
"""In a row. One may be the request's own fault, or an accident."""


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of time in seconds, and ``key``, the credential for every upstream of the pool.

    ``connect_s`` limits a connection, ``first_token_s`` the time from request to first token,
    ``silence_s`` the time between two tokens, ``patience_s`` the wait for resting upstreams.
    ``probe_s`` is the time between two probes. ``round_s`` is the time between two rounds in which
    many streams are read; with 0 each packet is read when it comes.
    """

    key: str | None = None
    connect_s: float = 5.0
    first_token_s: float = 300.0
    silence_s: float = 60.0
    probe_s: float = 5.0
    patience_s: float = 10.0
    round_s: float = 0.01


class Pool:
    """Upstreams that serve the same model. All methods belong to the event loop's thread."""

    def __init__(
        self, model: str, dialect: Dialect, addresses: Sequence[Address], options: PoolOptions
    ) -> None:
        self.model = model
        self.dialect = dialect
        self.options = options
        self._bits = 0
        self._prefixes = PrefixMap()
        self._accept: Callable[[Facts], str | None] = lambda _: None
        self._probes: asyncio.Task[None] | None = None
        self._said = ""
        self._rounds = ReadingRounds(options.round_s) if options.round_s else None
        self.upstreams: list[Upstream] = [self._make(address) for address in addresses]

    def _make(self, address: Address) -> Upstream:
        options = self.options
        answer_s = max(options.connect_s, _LEAST_PROBE_S) * 4
        made = Upstream(
            address,
            key=options.key,
            connect_s=options.connect_s,
            answer_s=answer_s,
            rounds=self._rounds,
        )
        made.bit = 1 << self._bits
        self._bits += 1
        return made

    async def introspect(self) -> list[Facts]:
        """Introspect all upstreams. Returns the facts of those that answer, in order.

        Raises ``ConfigError`` if none answers.
        """
        asked = await asyncio.gather(*map(self._introspect, self.upstreams))
        found = [upstream.facts for upstream in self.upstreams if upstream.facts is not None]
        if not found:
            first = self.upstreams[0].address.origin
            raise ConfigError(f"model {self.model}: no upstream answers: {first}: {asked[0]}")
        return found

    async def _introspect(self, upstream: Upstream) -> str | None:
        """Ask an upstream for its facts. Returns why it is not used, or None."""
        try:
            facts = await self.dialect.introspect(upstream.api, self.model)
        except UpstreamFailure as failure:
            _log.warning("model %s: %s: %s", self.model, upstream.address.origin, failure)
            return str(failure)
        why = self._accept(facts)
        if why is not None:
            _log.error("model %s: %s is not used: %s", self.model, upstream.address.origin, why)
            return why
        upstream.facts = facts
        upstream.went_up(self.model)
        return None

    def admit_only(self, accept: Callable[[Facts], str | None]) -> None:
        """Use only upstreams whose facts pass ``accept``, which returns None or a reason."""
        self._accept = accept
        for upstream in self.upstreams:
            if upstream.facts is not None and (why := accept(upstream.facts)) is not None:
                _log.error("model %s: %s is not used: %s", self.model, upstream.address.origin, why)
                upstream.up, upstream.facts = False, None

    @property
    def healthy(self) -> bool:
        """Whether at least one upstream is up and not draining."""
        return any(upstream.up and not upstream.draining for upstream in self.upstreams)

    def watch(self) -> None:
        """Start probing. Idempotent."""
        if self._probes is None:
            self._probes = asyncio.get_running_loop().create_task(self._probe_all())

    async def _probe_all(self) -> None:
        every_s = self.options.probe_s
        asked: set[Upstream] = set()

        async def ask(upstream: Upstream) -> None:
            try:
                await self.probe(upstream)
            except Exception as failure:  # noqa: BLE001 - the next probe comes all the same
                self._say(f"a probe failed: {in_one_line(failure)}")
            finally:
                asked.discard(upstream)

        async with asyncio.TaskGroup() as probes:
            while True:
                await asyncio.sleep(every_s if self.healthy else min(every_s, _LEAST_PROBE_S))
                # One that does not answer holds up no other.
                for upstream in [one for one in self.upstreams if one not in asked]:
                    asked.add(upstream)
                    probes.create_task(ask(upstream))

    def _say(self, what: str) -> None:
        """Log what probes find again and again, once."""
        if what != self._said:
            _log.error("model %s: %.500s", self.model, what)
        self._said = what

    async def probe(self, upstream: Upstream) -> None:
        """Ask one upstream whether it can compute; introspect it if it has no facts yet."""
        if upstream.facts is None:
            try:
                await self._introspect(upstream)
            except ConfigError as error:
                # It does not serve the model, or not yet.
                self._say(str(error))
            return
        try:
            await upstream.api.check(self.dialect.health(upstream.api))
        except Overloaded as failure:
            # A health path answers 503 if the server loads, stops or is broken.
            if failure.status == 503:
                upstream.went_down(self.model, str(failure))
        except (ConnectFailed, Silent) as failure:
            self._down(upstream, failure)
        except UpstreamFailure as failure:
            self.failed(upstream, failure)
        else:
            upstream.went_up(self.model)

    async def diagnose(self, upstream: Upstream, failure: UpstreamFailure) -> None:
        """Find out after a failed request whether the upstream or the request is at fault."""
        self.failed(upstream, failure)
        if isinstance(failure, Refused):
            await self.probe(upstream)

    def failed(self, upstream: Upstream, failure: UpstreamFailure) -> None:
        """Note a failure. The upstream goes down if it cannot be reached or fails repeatedly."""
        if isinstance(failure, ConnectFailed):
            is_down = True
        elif isinstance(failure, Incapable):
            is_down = False
        else:
            is_down = upstream.failed() >= _MOST_FAILURES
        if is_down:
            self._down(upstream, failure)
        else:
            upstream.complain(self.model, str(failure))

    def _down(self, upstream: Upstream, failure: UpstreamFailure) -> None:
        upstream.went_down(self.model, str(failure))
        # Its prefix cache may be lost.
        self._prefixes.forget(upstream.bit)

    def rest(self, upstream: Upstream, failure: Overloaded) -> None:
        """Send nothing to an upstream for as long as it asked."""
        # A rest of 0 s would make a busy loop.
        until_s = asyncio.get_running_loop().time() + max(failure.rest_s, _LEAST_REST_S)
        upstream.resting_until_s = max(upstream.resting_until_s, until_s)

    async def choose(
        self, keys: Sequence[int], prompt_tokens: int, *, tried: Sequence[Upstream], until_s: float
    ) -> Upstream:
        """Returns the upstream with the fewest tokens to compute before a prompt can begin.

        ``keys`` are the prompt's block keys: a shared prefix counts as computed. Waits until the
        loop's time ``until_s`` at the latest if every upstream that is up is resting. Raises
        ``EngineOverloaded`` if all rest longer than that, ``EngineUnavailable`` if none is up
        but those in ``tried``.
        """
        loop = asyncio.get_running_loop()
        while True:
            now_s = loop.time()
            able = [u for u in self.upstreams if u not in tried and u.takes(now_s)]
            if able:
                chosen = min(able, key=lambda u: self._rank(u, keys, prompt_tokens))
                self._prefixes.remember(keys, chosen.bit)
                return chosen
            resting = [u for u in self.upstreams if u.up and not u.draining and u not in tried]
            if not resting:
                raise nobody_left(None)
            free_s = min(u.resting_until_s for u in resting)
            if free_s > until_s:
                raise EngineOverloaded(
                    "The servers of this model are overloaded, please try again later.",
                    retry_after_s=max(1, math.ceil(free_s - now_s)),
                )
            await asyncio.sleep(free_s - now_s)

    def _rank(self, upstream: Upstream, keys: Sequence[int], prompt_tokens: int) -> tuple[int, ...]:
        shared = self._prefixes.shared_tokens(keys, upstream.bit)
        to_compute = upstream.outstanding_tokens + prompt_tokens - shared
        return to_compute, upstream.failed_in_a_row, upstream.served

    def load(self, upstream: Upstream, prompt_tokens: int, completion_tokens: int) -> Load:
        """Add a request to an upstream's outstanding work until the load's ``end``."""
        return Load(upstream, prompt_tokens, min(completion_tokens, _TYPICAL_TOKENS))

    async def ask(self, question: Callable[[Upstream, Facts], Awaitable[T]]) -> T:
        """Returns one upstream's answer to a question; asks the next one if an upstream fails.

        Raises ``ApiError`` if no upstream answers or one refuses the question itself.
        """
        tried: list[Upstream] = []
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self.options.patience_s
        last: UpstreamFailure | None = None
        while True:
            try:
                upstream = await self.choose((), 0, tried=tried, until_s=until_s)
            except EngineUnavailable:
                raise nobody_left(last) from last
            assert upstream.facts is not None  # noqa: S101 - it is up
            try:
                return await question(upstream, upstream.facts)
            except ClientsFault as fault:
                raise upstream.refusal(fault) from None
            except Overloaded as failure:
                self.rest(upstream, failure)
            except UpstreamFailure as failure:
                self.failed(upstream, failure)
                tried.append(upstream)
                last = failure

    async def prepare(self, addresses: Sequence[Address]) -> Callable[[], None]:
        """Ask new addresses what they are. Returns what makes the pool use these addresses.

        Raises ``ConfigError`` if one does not serve the model.
        """
        kept = {upstream.address for upstream in self.upstreams}
        added = [self._make(address) for address in addresses if address not in kept]
        try:
            await asyncio.gather(*map(self._introspect, added))
        except BaseException:
            for upstream in added:
                upstream.client.close()
            raise
        return partial(self._use, addresses, added)

    def _use(self, addresses: Sequence[Address], added: Sequence[Upstream]) -> None:
        """Add upstreams; drain those whose addresses are gone."""
        there = {upstream.address for upstream in (*self.upstreams, *added)}
        # One that drained may have left meanwhile. Probes find out what it is.
        back = [self._make(address) for address in addresses if address not in there]
        for upstream in self.upstreams:
            gone = upstream.address not in addresses
            if gone != upstream.draining:
                word = "drains" if gone else "is back"
                _log.info("model %s: %s %s", self.model, upstream.address.origin, word)
            upstream.draining = gone
        self.upstreams += [*added, *back]
        self.drop_drained()

    def drop_drained(self) -> None:
        """Remove draining upstreams that have no running request."""
        for upstream in [u for u in self.upstreams if u.draining and not u.running]:
            upstream.client.close()
            self._prefixes.forget(upstream.bit)
            self.upstreams.remove(upstream)
            _log.info("model %s: %s is drained", self.model, upstream.address.origin)

    async def aclose(self) -> None:
        """Stop probing and close idle connections."""
        if self._probes is not None:
            self._probes.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probes
            self._probes = None
        for upstream in self.upstreams:
            upstream.client.close()
        if self._rounds is not None:
            self._rounds.close()
