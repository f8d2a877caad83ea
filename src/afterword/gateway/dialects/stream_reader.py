"""The stream reader: turns token deltas, which every dialect can make, into events."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import msgspec

from afterword.core.job import (
    NO_TOKEN,
    Counted,
    Ended,
    Event,
    FinishReason,
    Job,
    Prefilled,
    Sampled,
    ScoredPrompt,
)
from afterword.gateway.failures import StreamBroke

Top = Sequence[tuple[int, float]]
"""Ids and log-probabilities, in any order."""


class TokenDelta(msgspec.Struct):
    """What one event of an upstream adds to one sequence.

    ``logprobs`` and ``tops`` are as long as ``ids``, or empty if the job asks for none.
    ``finish`` is the upstream's reason for the end, None if the sequence goes on.
    """

    seq: int
    ids: list[int]
    logprobs: list[float]
    tops: list[Top]
    finish: str | None = None


class StreamReader:
    """Turns token deltas of some siblings of a job into events; ends sequences at their limits.

    ``index`` is the job's index in events; ``seqs`` are the siblings of the request, in the
    upstream's order. Invariant: no event of a sequence follows its ``Ended``.
    """

    def __init__(self, index: int, job: Job, seqs: Sequence[int], end_ids: frozenset[int]) -> None:
        self._index = index
        self._job = job
        self._seqs = seqs
        self._made = dict.fromkeys(seqs, 0)
        self._open = set(seqs)
        self._prefilled = False
        # Shared by all events without scores: the mailbox extends them with each other only.
        self._unscored = (array("d"), array("i"), array("d"))
        ends = end_ids if not job.sampling.ignore_eos else frozenset()
        self._end_ids = ends.union(job.extra_end_ids)

    @property
    def over(self) -> bool:
        """Whether every sequence has ended or is closed."""
        return not self._open

    @property
    def begun(self) -> bool:
        """Whether ``prefilled`` has returned its event."""
        return self._prefilled

    def wants(self, seq: int) -> bool:
        """Returns whether a sequence has not ended."""
        return seq in self._open

    def close(self, seq: int) -> None:
        """Drop everything that still comes for a sequence."""
        self._open.discard(seq)

    def seq(self, index: int) -> int:
        """Returns the sibling of a choice's index in the request.

        Raises ``StreamBroke`` if the request has no such choice.
        """
        if not 0 <= index < len(self._seqs):
            raise StreamBroke("it answered with a choice that was not requested")
        return self._seqs[index]

    def prefilled(self, scored: ScoredPrompt | None = None) -> list[Event]:
        """Returns the ``Prefilled`` event at the first call, nothing later."""
        if self._prefilled:
            return []
        self._prefilled = True
        return [Prefilled(self._index, len(self._job.prompt_ids), 0, scored)]

    def counted(self, prompt_tokens: int, cached_tokens: int) -> Event:
        """Returns the event with the upstream's count of prompt tokens."""
        return Counted(self._index, prompt_tokens, cached_tokens)

    def sampled(self, delta: TokenDelta) -> list[Event]:
        """Returns the events of a delta. Raises ``StreamBroke`` for an unknown finish reason."""
        if delta.seq not in self._open:
            return []
        events: list[Event] = []
        count, reason = self._cut(delta)
        if count:
            self._made[delta.seq] += count
            events.append(self._sampled(delta, count))
        if reason is not None:
            events.append(self.ended(delta.seq, reason))
        return events

    def ended(self, seq: int, reason: FinishReason, made: int | None = None) -> Event:
        """End a sequence and return its event; ``made`` is the upstream's own count of tokens."""
        self._open.discard(seq)
        return Ended(self._index, seq, reason, self._made[seq] if made is None else made)

    def _cut(self, delta: TokenDelta) -> tuple[int, FinishReason | None]:
        """Returns how many tokens of a delta count, and why the sequence ends with them, if so."""
        left = self._job.max_tokens - self._made[delta.seq]
        ids = delta.ids
        if not self._end_ids.isdisjoint(ids):
            for at, token in enumerate(ids[:left], 1):
                if token in self._end_ids:
                    return at, "stop"
        if delta.finish is not None:
            return min(len(ids), left), reason_of(delta.finish)
        if len(ids) < left:
            return len(ids), None
        return (left, "length") if left else (0, None)

    def _sampled(self, delta: TokenDelta, count: int) -> Sampled:
        k = self._job.logprobs
        tokens = array("i", delta.ids[:count])
        if k is None:
            return Sampled(self._index, delta.seq, tokens, *self._unscored)
        # Each event needs arrays of its own, because the mailbox extends them.
        logprobs, top_ids, top_logprobs = array("d", delta.logprobs[:count]), array("i"), array("d")
        for top in delta.tops[:count]:
            add_top(top, k, top_ids, top_logprobs)
        return Sampled(self._index, delta.seq, tokens, logprobs, top_ids, top_logprobs)


def scored_prompt(logprobs: Sequence[float], tops: Sequence[Top], k: int) -> ScoredPrompt:
    """Returns the scores of a prompt's tokens after the first, each with its ``k`` likeliest."""
    top_ids, top_logprobs = array("i"), array("d")
    for top in tops:
        add_top(top, k, top_ids, top_logprobs)
    return ScoredPrompt(array("d", logprobs), top_ids, top_logprobs)


def add_top(top: Top, k: int, ids: array[int], logprobs: array[float]) -> None:
    """Append the ``k`` likeliest, likeliest first; pad with ``NO_TOKEN`` if ``top`` has fewer."""
    if not k:
        return
    likeliest = sorted(top, key=_by_likelihood)[:k]
    missing = k - len(likeliest)
    ids.extend([token for token, _ in likeliest] + [NO_TOKEN] * missing)
    logprobs.extend([logprob for _, logprob in likeliest] + [0.0] * missing)


def _by_likelihood(entry: tuple[int, float]) -> tuple[float, int]:
    return -entry[1], entry[0]


def reason_of(finish: str) -> FinishReason:
    """Returns an upstream's finish reason in the contract's words (A3).

    Raises ``StreamBroke`` if the reason is unknown.
    """
    if finish in {"stop", "eos", "eos_token", "stop_sequence"}:
        return "stop"
    if finish in {"length", "limit", "max_tokens"}:
        return "length"
    raise StreamBroke(f"it ended a choice with {finish[:40]!r}")
