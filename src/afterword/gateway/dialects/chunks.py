"""Chunks of ``/v1/completions`` streams, and the readers that turn them into events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from afterword.core.job import Event, FinishReason, Job
from afterword.gateway.dialects.stream_reader import (
    StreamReader,
    TokenDelta,
    Top,
    reason_of,
    scored_prompt,
)
from afterword.gateway.failures import StreamBroke
from afterword.gateway.transport.api import failure_in_stream


class ChoiceLogprobs(msgspec.Struct):
    """Log-probabilities of a choice's new tokens; with ``echo`` those of the prompt come first."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class ChoiceDelta(msgspec.Struct):
    """The part of a chunk that belongs to one choice."""

    index: int = 0
    text: str = ""
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class ChunkUsage(msgspec.Struct):
    """The upstream's own count of tokens."""

    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _Cached | None = None


class _Chunk(msgspec.Struct):
    choices: list[ChoiceDelta] = []
    usage: ChunkUsage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class IdResolver(msgspec.Struct, frozen=True):
    """``ids`` gives the ids of a choice's tokens, ``id_of`` the id of a token's name."""

    ids: Callable[[ChoiceDelta], list[int]]
    id_of: Callable[[str], int]


class ChunkReader:
    """Reads chunks. With ``echo`` the first chunk of each choice contains the prompt's scores."""

    def __init__(self, stream: StreamReader, job: Job, resolver: IdResolver) -> None:
        self._stream = stream
        self._job = job
        self._resolver = resolver
        self._echoed: set[int] = set()

    @property
    def over(self) -> bool:
        """See ``Reader``."""
        return self._stream.over

    def close(self, seq: int) -> None:
        """See ``Reader``."""
        self._stream.close(seq)

    def read(self, payload: bytes) -> list[Event]:
        """See ``Reader``."""
        try:
            chunk = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise StreamBroke("it sent an event that is not a chunk of a completion") from None
        if chunk.error is not None:
            raise failure_in_stream(chunk.error)
        events: list[Event] = []
        for choice in chunk.choices:
            delta = (
                self._bare(choice) if self._job.logprobs is None else self._scored(choice, events)
            )
            if not self._stream.begun:
                events += self._stream.prefilled()
            events += self._taken(delta)
        if chunk.usage is not None and not chunk.choices:
            events += self._counted(chunk.usage)
        return events

    def done(self) -> list[Event]:
        """See ``Reader``."""
        if not self._stream.over:
            raise StreamBroke("it ended its stream without ending its choices")
        return []

    def _taken(self, delta: TokenDelta) -> list[Event]:
        return self._stream.sampled(delta)

    def _counted(self, usage: ChunkUsage) -> list[Event]:
        details = usage.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details is not None else 0
        return [self._stream.counted(usage.prompt_tokens, cached)]

    def _bare(self, choice: ChoiceDelta) -> TokenDelta:
        """Returns the delta of a choice without log-probabilities."""
        seq = self._stream.seq(choice.index)
        return TokenDelta(seq, self._resolver.ids(choice), [], [], choice.finish_reason)

    def _scored(self, choice: ChoiceDelta, events: list[Event]) -> TokenDelta:
        """Returns the delta of a choice with scores; appends the prompt's scores to ``events``."""
        delta = self._bare(choice)
        if choice.logprobs is None:
            if delta.ids:
                raise StreamBroke("it sent tokens without the requested log-probabilities")
            return delta
        logprobs, tops = self._scores(choice.logprobs)
        k = self._job.prompt_logprobs
        if k is not None and delta.seq not in self._echoed:
            self._echoed.add(delta.seq)
            prompt = len(self._job.prompt_ids)
            if len(logprobs) < prompt:
                raise StreamBroke("it did not score the whole prompt")
            scored = scored_prompt(logprobs[1:prompt], tops[1:prompt], k)
            events += self._stream.prefilled(scored)
            logprobs, tops = logprobs[prompt:], tops[prompt:]
            # ``token_ids`` has generated tokens only; log-probabilities include the prompt.
            delta.ids = delta.ids[-len(logprobs) :] if logprobs else []
        if len(logprobs) != len(delta.ids):
            raise StreamBroke("it did not send one log-probability for each token")
        delta.logprobs, delta.tops = logprobs, tops
        return delta

    def _scores(self, given: ChoiceLogprobs) -> tuple[list[float], list[Top]]:
        values = [0.0 if value is None else value for value in given.token_logprobs]
        id_of = self._resolver.id_of
        tops: list[Top] = [
            [(id_of(name), value) for name, value in top.items()] if top else ()
            for top in given.top_logprobs or [None] * len(values)
        ]
        return values, tops


class UsageCountReader(ChunkReader):
    """Reads text from an upstream that counts tokens only at the end, in its usage."""

    def __init__(self, stream: StreamReader, job: Job, resolver: IdResolver) -> None:
        super().__init__(stream, job, resolver)
        self._reasons: dict[int, FinishReason] = {}
        self._made: dict[int, int] = {}

    def done(self) -> list[Event]:
        """See ``Reader``."""
        events = self._ends(None)
        return events + super().done()

    def _taken(self, delta: TokenDelta) -> list[Event]:
        if delta.seq in self._reasons:
            return []
        if delta.finish is not None:
            self._reasons[delta.seq] = reason_of(delta.finish)
            delta.finish = None
        self._made[delta.seq] = self._made.get(delta.seq, 0) + len(delta.ids)
        return self._stream.sampled(delta)

    def _counted(self, usage: ChunkUsage) -> list[Event]:
        return super()._counted(usage) + self._ends(usage.completion_tokens)

    def _ends(self, completion_tokens: int | None) -> list[Event]:
        """Returns the end of every choice; the first takes what the usage counts for no other."""
        ends: list[Event] = []
        reasons, self._reasons = self._reasons, {}
        for at, (seq, reason) in enumerate(reasons.items(), 1):
            if not self._stream.wants(seq):
                continue
            made = self._made[seq]
            if completion_tokens is not None:
                rest = sum(self._made[other] for other in list(reasons)[at:])
                made = max(completion_tokens - rest, 0) if at == 1 else made
            ends.append(self._stream.ended(seq, reason, made))
        return ends


def piece_of(token: str) -> bytes:
    r"""Returns the bytes of a token, which is written as text or ``bytes:\xe2\x80`` (L4)."""
    if token.startswith("bytes:\\x"):
        try:
            return bytes.fromhex(token[6:].replace("\\x", ""))
        except ValueError:
            return token.encode()
    return token.encode()
