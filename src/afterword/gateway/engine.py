"""An engine in front of upstreams: jobs become requests, and their streams become events."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from afterword.core.errors import (
    ConfigError,
    EngineOverloaded,
    EngineUnavailable,
    UnusableGrammar,
)
from afterword.core.fingerprint import fingerprint
from afterword.core.job import Constraint, Job, OutputGrammar
from afterword.core.protocols import EngineCard, EngineStats, Feature
from afterword.gateway.address import Address
from afterword.gateway.dialects.dialect import AnyTokenizer, Facts, refuse
from afterword.gateway.dialects.registry import DIALECTS
from afterword.gateway.failures import nobody_left
from afterword.gateway.generation import Counts, RemoteGeneration
from afterword.gateway.pool.pool import Pool, PoolOptions
from afterword.gateway.pool.upstream import Upstream, UpstreamStats
from afterword.gateway.vocabulary import RemoteTokenizer, TextTokenizer

_RETRY_AFTER_S = 1
_LONG = 1 << 16
"""Longer texts and arrays of ids are looked at in a thread."""
_OF_ENGINES: tuple[Feature, ...] = ("cache_salt", "returned_ids")
"""Features that a plan needs, and no job."""


async def open_remote(
    name: str, addresses: Sequence[Address], *, options: PoolOptions, max_waiting: int = 256
) -> RemoteEngine:
    """Introspect the upstreams and return an engine in front of them.

    Raises ``ConfigError`` if no upstream answers.
    """
    dialect = DIALECTS[addresses[0].dialect]
    pool = Pool(name, dialect, addresses, options)
    try:
        found = await pool.introspect()
        engine = RemoteEngine(pool, found, max_waiting=max_waiting)
        pool.watch()
    except BaseException:
        await pool.aclose()
        raise
    return engine


class RemoteEngine:
    """An ``Engine`` over a pool of upstreams. All methods belong to the event loop's thread.

    ``found`` holds the facts of the upstreams that answered, at least one. At most
    ``max_waiting`` requests wait for their first token; ``open`` refuses further ones.
    """

    def __init__(self, pool: Pool, found: Sequence[Facts], *, max_waiting: int) -> None:
        self.pool = pool
        context = min(facts.context_tokens for facts in found)
        self._facts = msgspec.structs.replace(found[0], context_tokens=context)
        self._max_waiting = max_waiting
        self._generations: set[RemoteGeneration] = set()
        self._closed = False
        self.tokenizer: AnyTokenizer = self._tokenizer()
        self.counts = Counts()
        self.card = EngineCard(
            draws=False,
            context_tokens=context,
            fingerprint=fingerprint(pool.dialect.name, *sorted({one.identity for one in found})),
            batch_invariant=all(facts.batch_invariant for facts in found),
            unsupported=self._unsupported(),
            details={
                "engine": pool.dialect.title,
                "upstreams": len(pool.upstreams),
                "upstream_model": self._facts.model,
            },
        )
        pool.admit_only(self._against)

    def _tokenizer(self) -> AnyTokenizer:
        facts = self._facts
        if facts.vocabulary is None:
            return TextTokenizer()
        return RemoteTokenizer(
            facts.vocabulary, chat_template=facts.chat_template, encode=self._ids_of
        )

    def _unsupported(self) -> Mapping[Feature, str]:
        dialect, reasons = self.pool.dialect, dict[Feature, str]()
        if self._facts.vocabulary is None:
            reasons["token_ids"] = f"{dialect.title} has no tokenizer."
        for feature in _OF_ENGINES:
            if feature in dialect.lacks:
                reasons[feature] = f"{dialect.title} {dialect.lacks[feature]}."
        return reasons

    async def _ids_of(self, text: str, parse_special: bool) -> list[int]:
        """Ask an upstream for the ids of a text; split names of special tokens if they are text."""
        dialect = self.pool.dialect
        whole = parse_special or dialect.takes_names_as_text
        if whole:
            parts = [text]
        elif len(text) < _LONG:
            parts = self._without_names(text)
        else:
            parts = await asyncio.to_thread(self._without_names, text)
        ids: list[int] = []
        for part in parts:
            ids += await self.pool.ask(partial(self._encode, part, parse_special))
        return ids

    async def _encode(
        self, text: str, parse_special: bool, upstream: Upstream, facts: Facts
    ) -> list[int]:
        ids = await self.pool.dialect.encode(
            upstream.api, facts.model, text, parse_special=parse_special
        )
        if isinstance(self.tokenizer, RemoteTokenizer):
            if len(ids) < _LONG:
                self.tokenizer.check(ids)
            else:
                await asyncio.to_thread(self.tokenizer.check, ids)
        return ids

    def _without_names(self, text: str) -> list[str]:
        """Split a text so that no part contains the whole name of a special token."""
        pieces = self.tokenizer.pieces
        names = [pieces[i].decode() for i in sorted(self.tokenizer.special_ids)]
        found = [name for name in names if len(name) > 1 and name in text]
        if not found:
            return [text]
        longest_first = sorted(found, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, longest_first)))
        beyond = len(longest_first[0]) - 1
        parts, start, at = [], 0, 0
        # A search holds the GIL to its end, so each goes through a slice, and the names that begin
        # in it.
        while at < len(text):
            end = at + _LONG
            match = pattern.search(text, at, end + beyond)
            if match is None or match.start() >= end:
                at = end
                continue
            parts.append(text[start : match.start() + 1])
            start, at = match.start() + 1, match.end()
        return [*parts, text[start:]]

    def _against(self, facts: Facts) -> str | None:
        """Returns why an upstream cannot serve the same model as the first one, or None."""
        mine = self._facts
        if facts.vocabulary != mine.vocabulary:
            return "its vocabulary differs from that of the first server"
        if facts.context_tokens < mine.context_tokens:
            return (
                f"its context of {facts.context_tokens} tokens is shorter "
                f"than {mine.context_tokens}"
            )
        return None

    def open(
        self, jobs: Sequence[Job], *, later: Sequence[Job] = (), admitted: bool = False
    ) -> RemoteGeneration:
        """Admit the jobs of one request; see ``core.protocols.Engine``."""
        if self._closed:
            raise EngineUnavailable("The engine is not available.")
        if not self.pool.healthy:
            raise nobody_left(None)
        refuse(self.pool.dialect, self._facts, (*jobs, *later))
        waiting = sum(not generation.begun for generation in self._generations)
        if not admitted and waiting >= self._max_waiting:
            raise EngineOverloaded(
                "The engine is currently overloaded, please try again later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        self.pool.watch()
        generation = RemoteGeneration(
            self.pool, self.tokenizer, jobs, counts=self.counts, leave=self._leave
        )
        self._generations.add(generation)
        return generation

    def _leave(self, generation: RemoteGeneration) -> None:
        """Forget a generation that has ended."""
        self._generations.discard(generation)
        self.pool.drop_drained()

    def constraint(self, grammar: OutputGrammar) -> Constraint:
        """Returns the grammar, which upstreams compile; see ``core.protocols.Engine``."""
        dialect = self.pool.dialect
        reason = dialect.lacks.get("structured") or dialect.unusable(grammar)
        if reason is not None:
            raise UnusableGrammar(f"{dialect.title} {reason}.")
        return Constraint(grammar)

    def healthy(self) -> bool:
        """Returns whether at least one upstream is up."""
        return self.pool.healthy and not self._closed

    def stats(self) -> EngineStats:
        """Returns the figures of now. Slots and cells are 0: they belong to the upstreams."""
        begun = [generation for generation in self._generations if generation.begun]
        return EngineStats(
            running_sequences=sum(generation.sequences for generation in begun),
            waiting_sequences=sum(g.sequences for g in self._generations if not g.begun),
            prefilled_tokens=self.counts.prompt_tokens - self.counts.cached_tokens,
            cached_tokens=self.counts.cached_tokens,
            generated_tokens=self.counts.generated_tokens,
        )

    def upstream_stats(self) -> Sequence[UpstreamStats]:
        """Returns the figures of each upstream at this moment."""
        return [upstream.stats() for upstream in self.pool.upstreams]

    async def prepare(self, addresses: Sequence[Address]) -> Callable[[], None]:
        """Look at other addresses. Returns what makes the engine use them from then on.

        Running requests are finished. Raises ``ConfigError`` if the dialect differs, or if a new
        address does not serve the model.
        """
        if addresses[0].dialect != self.pool.dialect.name:
            raise ConfigError(
                f"model {self.pool.model}: a change of dialect needs another start of the server"
            )
        return await self.pool.prepare(addresses)

    async def aclose(self) -> None:
        """Abort running generations and close connections. Idempotent."""
        self._closed = True
        for generation in list(self._generations):
            generation.end(EngineUnavailable("The server is shutting down."))
        await self.pool.aclose()
