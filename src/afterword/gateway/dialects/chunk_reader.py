"""Readers that turn the chunks of a ``/v1/completions`` stream into events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from afterword.core.job import Ended, Event, FinishReason, Job
from afterword.core.wire import LOWEST
from afterword.gateway.dialects.chunks import (
    ChoiceDelta,
    ChoiceLogprobs,
    RankedLogprob,
    decode_chunk,
)
from afterword.gateway.dialects.stream_reader import (
    PackedTops,
    StreamReader,
    TokenDelta,
    Top,
    gathered,
    scored_prompt,
)
from afterword.gateway.failures import Incapable, StreamBroke
from afterword.gateway.lenient import parse
from afterword.gateway.long_payload import LongPayload
from afterword.gateway.transport.api import failure_in_stream


class IdResolver(msgspec.Struct, frozen=True):
    """``ids`` gives the ids of a choice's tokens, ``id_of`` the id of a token's name."""

    ids: Callable[[ChoiceDelta], list[int]]
    id_of: Callable[[str], int]


class _Echo:
    """The scores of the prompt, which come before those of a choice, in one chunk or in many."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.logprobs: list[float] = []
        self.tops = PackedTops()
        self.ranks: list[int] = []

    def take(self, logprobs: list[float], tops: Sequence[Top]) -> int:
        """Add the scores that belong to the prompt. Returns how many they are."""
        count = min(self.left, len(logprobs))
        self.logprobs += logprobs[:count]
        self.tops.extend(tops[:count])
        self.left -= count
        return count


class ChunkReader:
    """Reads chunks. With ``echo`` the first chunks of each choice contain the prompt's scores."""

    def __init__(self, stream: StreamReader, job: Job, resolver: IdResolver) -> None:
        self._stream = stream
        self._job = job
        self._resolver = resolver
        self._echoes: dict[int, _Echo] = {}
        self._usage: Mapping[str, Any] = {}
        self._usage_is_whole = False
        self._unscored = job.logprobs is None and job.prompt_logprobs is None
        self._begun = False
        self._broke = False
        self._named: dict[str, int] = {}

    @property
    def over(self) -> bool:
        """See ``Reader``. Never after an error that took events with it, perhaps the ends."""
        return self._stream.over and not self._broke

    @property
    def remarks(self) -> Mapping[str, str]:
        """See ``Reader``."""
        return self._stream.remarks

    def close(self, seq: int) -> None:
        """See ``Reader``."""
        self._stream.close(seq)

    def read(self, payload: bytes | LongPayload) -> list[Event]:
        """See ``Reader``."""
        chunk = decode_chunk(payload)
        # Some servers only say what is wrong.
        bare = chunk.choices is None and (chunk.message or chunk.detail)
        if chunk.error or bare or chunk.object == "error":
            raise failure_in_stream(parse(payload))
        if chunk.usage:
            self._note(chunk.usage, whole=not chunk.choices)
        choices = chunk.choices
        if choices and len(choices) == 1 and self._begun and self._unscored:
            return self._taken(self._bare(choices[0]))  # the same, for the most common case
        was_over = self.over
        events: list[Event] = []
        try:
            for choice in choices or ():
                events += self._events(choice)
        except StreamBroke:
            self._broke = not was_over
            raise
        return events

    def _events(self, choice: ChoiceDelta) -> list[Event]:
        events: list[Event] = []
        delta = self._bare(choice) if self._unscored else self._scored(choice, events)
        if self._job.prompt_logprobs is None:
            events += self._stream.prefilled()
        self._begun = self._stream.begun
        return events + self._taken(delta)

    def _note(self, usage: Any, *, whole: bool) -> None:  # noqa: ANN401 - any JSON value
        """Keep a usage for the end. One of a chunk with choices may be of one choice alone."""
        if isinstance(usage, dict) and (whole or not self._usage_is_whole):
            self._usage, self._usage_is_whole = usage, whole

    def done(self, *, said: bool) -> list[Event]:
        """See ``Reader``."""
        events = self._ends(said=said)
        if not self._stream.over:
            raise self._stream.incomplete(self._stream.open)
        return [*events, self._counted()] if self._stream.begun else events

    def _ends(self, *, said: bool) -> list[Event]:
        """Returns the ends of choices that got tokens and no reason, if the upstream is done."""
        stream = self._stream
        if not said:
            return []
        return [stream.ended(s, stream.unsaid(s)) for s in stream.open if stream.made(s)]

    def _taken(self, delta: TokenDelta) -> list[Event]:
        return self._stream.sampled(delta)

    def _counted(self, completion_tokens: int = 0) -> Event:
        usage = self._usage
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        return self._stream.counted(
            usage.get("prompt_tokens"), cached, completion_tokens=completion_tokens
        )

    def _bare(self, choice: ChoiceDelta) -> TokenDelta:
        """Returns the delta of a choice without log-probabilities."""
        if choice.text is None and (choice.delta is not None or choice.message is not None):
            raise StreamBroke("it answered in the shape of a chat")
        seq = self._stream.seq(choice.index)
        finish = self._stream.reason(choice.finish_reason)
        return TokenDelta(seq, self._resolver.ids(choice), (), (), finish)

    def _scored(self, choice: ChoiceDelta, events: list[Event]) -> TokenDelta:
        """Returns the delta of a choice with scores; appends the prompt's scores to ``events``."""
        if choice.logprobs is not None:
            choice.logprobs = choice.logprobs.in_arrays
        delta = self._bare(choice)
        if choice.logprobs is None:
            if delta.ids:
                raise Incapable("it sent tokens without the requested log-probabilities")
            return delta
        logprobs, tops = self._scores(choice.logprobs)
        if self._job.prompt_logprobs is not None:
            count = self._echoed(delta, choice, logprobs, tops, events)
            logprobs, tops = logprobs[count:], tops[count:]
            # Some servers send the ids of generated tokens only.
            delta.ids = delta.ids[-len(logprobs) :] if logprobs else []
        if len(logprobs) != len(delta.ids):
            raise Incapable("it did not send one log-probability for each token")
        delta.logprobs, delta.tops = logprobs, tops
        return delta

    def _echoed(
        self,
        delta: TokenDelta,
        choice: ChoiceDelta,
        logprobs: list[float],
        tops: Sequence[Top],
        events: list[Event],
    ) -> int:
        """Returns how many scores are the prompt's; appends them to ``events`` when all came."""
        job = self._job
        echo = self._echoes.get(delta.seq)
        if echo is None:
            echo = self._echoes[delta.seq] = _Echo(len(job.prompt_ids))
        if choice.prompt_logprobs:
            echo.ranks = self._ranks(choice.prompt_logprobs)
        if not echo.left:
            return 0
        count = echo.take(logprobs, tops)
        if not echo.left:
            if job.prompt_ranks and len(echo.ranks) < len(job.prompt_ids) - 1:
                raise Incapable("it did not send the ranks of the prompt's tokens")
            scored = scored_prompt(
                echo.logprobs[1:], echo.tops[1:], job.prompt_logprobs or 0, job.scored_ids,
                echo.ranks,
            )  # fmt: skip
            events += self._stream.prefilled(scored)
            # All choices echo the same prompt, and one of them is enough.
            echo.logprobs, echo.tops = [], PackedTops()
        elif delta.finish is not None:
            raise Incapable("it did not score the whole prompt")
        return count

    def _ranks(self, entries: Sequence[dict[str, RankedLogprob] | None]) -> list[int]:
        ids = self._job.prompt_ids[1:]
        try:
            return [
                entry[str(token)].rank
                for token, entry in zip(ids, entries[1:], strict=True)
                if entry is not None
            ]
        except (KeyError, ValueError):
            raise Incapable("it did not rank the prompt's tokens") from None

    def _scores(self, given: ChoiceLogprobs) -> tuple[list[float], Sequence[Top]]:
        values = [LOWEST if value is None else value for value in given.token_logprobs]
        id_of = self._id_of
        tops: Iterator[Top] = (
            [(id_of(name), value) for name, value in top.items()] if top else ()
            for top in given.top_logprobs or [None] * len(values)
        )
        all_tops = gathered(tops, len(values))
        if not len(given.tokens) == len(values) == len(all_tops):
            raise Incapable("its log-probabilities have arrays of different lengths")
        return values, all_tops

    def _id_of(self, name: str) -> int:
        """Returns the id of a name. Each is read once, because most of them come again."""
        known = self._named.get(name)
        if known is None:
            known = self._named[name] = self._resolver.id_of(name)
        return known


class UsageCountReader(ChunkReader):
    """Reads text from an upstream that counts tokens only at the end, in its usage.

    So the ends of choices wait for the end of the stream. Invariant: a choice with a reason is
    open in the stream reader and gets no more text.
    """

    def __init__(self, stream: StreamReader, job: Job, resolver: IdResolver) -> None:
        super().__init__(stream, job, resolver)
        self._reasons: dict[int, FinishReason] = {}

    @property
    def over(self) -> bool:
        """See ``Reader``."""
        if not self._reasons:  # nearly always
            return super().over
        return not self._broke and all(seq in self._reasons for seq in self._stream.open)

    def done(self, *, said: bool) -> list[Event]:
        """See ``Reader``."""
        stream = self._stream
        for seq in stream.open:
            if said and seq not in self._reasons and stream.made(seq):
                self._reasons[seq] = stream.unsaid(seq)
        if not self.over:
            missing = [seq for seq in stream.open if seq not in self._reasons]
            raise stream.incomplete(missing)
        if not stream.begun:
            return []
        ends = self._counted_ends()
        return [*ends, self._counted(sum(end.completion_tokens for end in ends))]

    def _taken(self, delta: TokenDelta) -> list[Event]:
        if delta.seq in self._reasons or not self._stream.wants(delta.seq):
            return []
        if delta.finish is not None:
            self._reasons[delta.seq] = delta.finish
            delta.finish = None
        return self._stream.sampled(delta)

    def _counted_ends(self) -> list[Ended]:
        """Returns the end of every choice; the first takes what the usage counts for no other."""
        stream = self._stream
        seqs = stream.open
        own = [stream.made(seq) for seq in seqs]
        most = self._job.max_tokens * len(seqs)
        total = stream.believed(
            "its count of completion tokens is not believed",
            self._usage.get("completion_tokens"), sum(own), most,
        )  # fmt: skip
        if not self._usage_is_whole:
            total = max(total, sum(own)) if len(seqs) > 1 else total
        return [
            stream.ended(
                seq, self._reasons[seq], max(total - sum(own[1:]), 0) if at == 0 else own[at]
            )
            for at, seq in enumerate(seqs)
        ]
