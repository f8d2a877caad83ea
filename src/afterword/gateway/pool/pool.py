"""The upstreams of one model: which gets a request, which is healthy, who waits for whom."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from afterword.core.errors import ConfigError, EngineOverloaded, EngineUnavailable
from afterword.gateway.address import Address
from afterword.gateway.dialects.dialect import Dialect, Facts
from afterword.gateway.failures import ClientsFault, Overloaded, Refused, UpstreamFailure
from afterword.gateway.pool.prefixes import PrefixMap
from afterword.gateway.pool.upstream import Load, Upstream

_log = logging.getLogger("afterword.upstream")
T = TypeVar("T")

_TYPICAL_TOKENS = 256
"""How long an answer is taken to be where it may be longer."""
_LEAST_PROBE_S = 1.0
_LEAST_REST_S = 0.1
_MOST_REFUSALS = 3


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of time, in seconds, and ``key``, what the upstreams want to see.

    ``connect_s`` for a connection, ``first_token_s`` from request to first token, ``silence_s``
    between two tokens, ``probe_s`` between two probes, ``patience_s`` for a request that waits
    for upstreams which asked to be left alone.
    """

    key: str | None = None
    connect_s: float = 5.0
    first_token_s: float = 300.0
    silence_s: float = 60.0
    probe_s: float = 5.0
    patience_s: float = 10.0


class Pool:
    """Upstreams that are taken to be the same model. Lives on the event loop's thread."""

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
        self.upstreams: list[Upstream] = [self._make(address) for address in addresses]

    def _make(self, address: Address) -> Upstream:
        options = self.options
        answer_s = max(options.connect_s, _LEAST_PROBE_S) * 4
        made = Upstream(address, key=options.key, connect_s=options.connect_s, answer_s=answer_s)
        made.bit = 1 << self._bits
        self._bits += 1
        return made

    async def introspect(self) -> list[Facts]:
        """Ask all upstreams what they are. Raises ``ConfigError`` where none can say."""
        asked = await asyncio.gather(*map(self._introspect, self.upstreams))
        found = [upstream.facts for upstream in self.upstreams if upstream.facts is not None]
        if not found:
            first = self.upstreams[0].address.origin
            raise ConfigError(f"model {self.model}: no upstream answers: {first}: {asked[0]}")
        return found

    async def _introspect(self, upstream: Upstream) -> str | None:
        """Why an upstream is not used, or None."""
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
        """From now on upstreams are used only where ``accept`` has nothing against their facts."""
        self._accept = accept
        for upstream in self.upstreams:
            if upstream.facts is not None and (why := accept(upstream.facts)) is not None:
                _log.error("model %s: %s is not used: %s", self.model, upstream.address.origin, why)
                upstream.up, upstream.facts = False, None

    @property
    def healthy(self) -> bool:
        """Whether some upstream answers."""
        return any(upstream.up and not upstream.draining for upstream in self.upstreams)

    def watch(self) -> None:
        """Begin to probe, if that was not done."""
        if self._probes is None:
            self._probes = asyncio.get_running_loop().create_task(self._probe_all())

    async def _probe_all(self) -> None:
        every_s = self.options.probe_s
        while True:
            await asyncio.sleep(every_s if self.healthy else min(every_s, _LEAST_PROBE_S))
            await asyncio.gather(*map(self.probe, self.upstreams))

    async def probe(self, upstream: Upstream) -> None:
        """Ask one upstream whether it can compute; one that was never reached, what it is."""
        if upstream.facts is None:
            await self._introspect(upstream)
            return
        try:
            await upstream.api.check(self.dialect.health(upstream.api))
        except Overloaded as failure:
            # A path that says how it is answers 503 while it loads, stops or is broken.
            if failure.status == 503:
                upstream.went_down(self.model, str(failure))
        except UpstreamFailure as failure:
            self.failed(upstream, failure)
        else:
            upstream.went_up(self.model)

    async def diagnose(self, upstream: Upstream, failure: UpstreamFailure) -> None:
        """A request failed at an upstream: is it the upstream's doing, or the request's own?"""
        self.failed(upstream, failure)
        if isinstance(failure, Refused):
            await self.probe(upstream)

    def failed(self, upstream: Upstream, failure: UpstreamFailure) -> None:
        """An upstream did not do what it should. Some errors in a row are its own doing."""
        if isinstance(failure, Refused) and upstream.refused() < _MOST_REFUSALS:
            return
        upstream.went_down(self.model, str(failure))
        # What it had in memory is no longer counted on.
        self._prefixes.forget(upstream.bit)

    def rest(self, upstream: Upstream, failure: Overloaded) -> None:
        """An upstream asked to be left alone."""
        # One that says 0 is not asked in a circle.
        until_s = asyncio.get_running_loop().time() + max(failure.rest_s, _LEAST_REST_S)
        upstream.resting_until_s = max(upstream.resting_until_s, until_s)

    async def choose(
        self, keys: Sequence[int], prompt_tokens: int, *, tried: Sequence[Upstream], until_s: float
    ) -> Upstream:
        """The upstream that would begin with a prompt first: least to do, and most of it shared.

        Waits, at the latest until the loop's time ``until_s``, where all that are up have asked
        to be left alone. Raises ``EngineOverloaded`` and ``EngineUnavailable``.
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
                raise EngineUnavailable("No server of this model can be reached.", retry_after_s=1)
            free_s = min(u.resting_until_s for u in resting)
            if free_s > until_s:
                raise EngineOverloaded(
                    "The servers of this model are overloaded, please try again later.",
                    retry_after_s=max(1, math.ceil(free_s - now_s)),
                )
            await asyncio.sleep(free_s - now_s)

    def _rank(self, upstream: Upstream, keys: Sequence[int], prompt_tokens: int) -> tuple[int, int]:
        shared = self._prefixes.shared_tokens(keys, upstream.bit)
        return upstream.outstanding_tokens + prompt_tokens - shared, upstream.served

    def load(self, upstream: Upstream, prompt_tokens: int, completion_tokens: int) -> Load:
        """Count a request as work of an upstream."""
        return Load(upstream, prompt_tokens, min(completion_tokens, _TYPICAL_TOKENS))

    async def ask(self, question: Callable[[Upstream, Facts], Awaitable[T]]) -> T:
        """Have some upstream answer a question, another where the first fails. ``ApiError``."""
        tried: list[Upstream] = []
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self.options.patience_s
        while True:
            upstream = await self.choose((), 0, tried=tried, until_s=until_s)
            assert upstream.facts is not None  # noqa: S101 - it is up
            try:
                return await question(upstream, upstream.facts)
            except ClientsFault as fault:
                raise fault.error from None
            except Overloaded as failure:
                self.rest(upstream, failure)
            except UpstreamFailure as failure:
                self.failed(upstream, failure)
                tried.append(upstream)

    async def retarget(self, addresses: Sequence[Address]) -> None:
        """Take on new addresses; let those that are gone finish what they have."""
        kept = {upstream.address for upstream in self.upstreams}
        for upstream in self.upstreams:
            gone = upstream.address not in addresses
            if gone != upstream.draining:
                word = "drains" if gone else "is back"
                _log.info("model %s: %s %s", self.model, upstream.address.origin, word)
            upstream.draining = gone
        added = [self._make(address) for address in addresses if address not in kept]
        await asyncio.gather(*map(self._introspect, added))
        self.upstreams += added
        self.drop_drained()

    def drop_drained(self) -> None:
        """Close upstreams that had to finish and have."""
        for upstream in [u for u in self.upstreams if u.draining and not u.running]:
            upstream.client.close()
            self._prefixes.forget(upstream.bit)
            self.upstreams.remove(upstream)
            _log.info("model %s: %s is drained", self.model, upstream.address.origin)

    async def aclose(self) -> None:
        """Stop probing, close connections."""
        if self._probes is not None:
            self._probes.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probes
            self._probes = None
        for upstream in self.upstreams:
            upstream.client.close()
