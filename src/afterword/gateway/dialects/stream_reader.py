"""The stream reader: turns token deltas, which every dialect can make, into events."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import overload

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
from afterword.gateway.failures import Incapable, StreamBroke
from afterword.gateway.lenient import count_of

Top = Sequence[tuple[int, float]]
"""Ids and log-probabilities, in any order."""
_REASONS: Mapping[object, FinishReason] = {
    "stop": "stop", "eos": "stop", "eos_token": "stop", "stop_sequence": "stop",
    "content_filter": "stop", "length": "length", "limit": "length", "max_tokens": "length",
}  # fmt: skip
_NO_REASON = frozenset({"null", "none"})
"""What servers write for null as text."""
_BROKEN = frozenset({"abort", "aborted", "cancelled", "canceled", "error"})
_ROUNDING = 0.125
"""How far above 0 a difference of two numbers of 16 bits can be that are as large as logits."""
_SHOWN_CHARACTERS = 40
_MANY_TOPS = 1024


class PackedTops(Sequence[Top]):
    """Many tops in three arrays: to free an object for each entry would hold the GIL for long."""

    def __init__(self, tops: Iterable[Top] = ()) -> None:
        self._ids = array("q")
        self._values = array("d")
        self._ends = array("q", (0,))
        self.extend(tops)

    def extend(self, tops: Iterable[Top]) -> None:
        """Add tops."""
        for top in tops:
            for token, value in top:
                self._ids.append(token)
                self._values.append(value)
            self._ends.append(len(self._ids))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[Top]:
        return map(self._top, range(len(self)))

    @overload
    def __getitem__(self, at: int) -> Top: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Top]: ...
    def __getitem__(self, at: int | slice) -> Top | Sequence[Top]:
        """Returns the top of a position, or those of a slice without a step."""
        if not isinstance(at, slice):
            return self._top(range(len(self))[at])
        start, stop, _ = at.indices(len(self))
        ends = self._ends[start : max(start, stop) + 1]
        first, last = ends[0], ends[-1]
        part = PackedTops()
        part._ids, part._values = self._ids[first:last], self._values[first:last]
        part._ends = array("q", (end - first for end in ends))
        return part

    def _top(self, at: int) -> Top:
        start, end = self._ends[at], self._ends[at + 1]
        return list(zip(self._ids[start:end], self._values[start:end], strict=True))


def gathered(tops: Iterable[Top], count: int) -> Sequence[Top]:
    """Returns tops, expected to be ``count``, packed if they are many."""
    return PackedTops(tops) if count > _MANY_TOPS else list(tops)


class TokenDelta(msgspec.Struct):
    """What one event of an upstream adds to one sequence.

    ``logprobs`` and ``tops`` are as long as ``ids``, or empty if the job asks for none.
    ``finish`` is the upstream's reason for the end, None if the sequence goes on.
    """

    seq: int
    ids: list[int]
    logprobs: Sequence[float]
    tops: Sequence[Top]
    finish: FinishReason | None = None


class StreamReader:
    """Turns token deltas of some siblings of a job into events; ends sequences at their limits.

    ``index`` is the job's index in events; ``seqs`` are the siblings of the request, in the
    upstream's order. ``estimated``: the job's count of its prompt's tokens is an estimate, and the
    upstream alone can count. ``most`` limits the ids of a sequence that are not the upstream's
    tokens; ``max_tokens`` limits others. ``remarks`` says what was odd, by kind, and what stood
    there. Invariant: no event of a sequence follows its ``Ended``.
    """

    def __init__(
        self,
        index: int,
        job: Job,
        seqs: Sequence[int],
        end_ids: frozenset[int],
        *,
        estimated: bool = False,
        most: int | None = None,
    ) -> None:
        self.remarks: dict[str, str] = {}
        self._index = index
        self._job = job
        self._seqs = seqs
        self._made = dict.fromkeys(seqs, 0)
        self._open = set(seqs)
        self._prefilled = False
        self._estimated = estimated
        self._most = job.max_tokens if most is None else most
        # Shared by all events without scores: the mailbox extends them with each other only.
        self._unscored = (array("d"), array("i"), array("d"))
        ends = frozenset() if job.sampling.ignore_eos else end_ids.union(job.extra_end_ids)
        self._end_ids = ends.union(job.stop_ids)

    @property
    def over(self) -> bool:
        """Whether every sequence has ended or is closed."""
        return not self._open

    @property
    def begun(self) -> bool:
        """Whether ``prefilled`` has returned its event."""
        return self._prefilled

    @property
    def open(self) -> Sequence[int]:
        """The sequences that have not ended, in order."""
        return [seq for seq in self._seqs if seq in self._open]

    def wants(self, seq: int) -> bool:
        """Returns whether a sequence has not ended."""
        return seq in self._open

    def close(self, seq: int) -> None:
        """Drop everything that still comes for a sequence."""
        self._open.discard(seq)

    def seq(self, index: object) -> int:
        """Returns the sibling of a choice's index in the request.

        If the request has one choice, it needs no index. Raises ``StreamBroke`` if the request has
        no such choice.
        """
        if index == 0 and index.__class__ is int:  # nearly always
            return self._seqs[0]
        at = count_of(index)
        if at is None and len(self._seqs) == 1:
            return self._seqs[0]
        if not isinstance(at, int) or not 0 <= at < len(self._seqs):
            raise StreamBroke("it answered with a choice that was not requested")
        return self._seqs[at]

    def reason(self, finish: object) -> FinishReason | None:
        """Returns an upstream's finish reason in the contract's words (A3), None if there is none.

        Raises ``StreamBroke`` if the upstream gave the choice up.
        """
        if not finish:
            return None
        if isinstance(finish, str):
            word = finish.lower()
            known = _REASONS.get(word)
            if known is not None:
                return known
            if word in _NO_REASON:
                return None
            if word in _BROKEN:
                raise StreamBroke("it gave up a choice before its end")
        self.remark("its reason for the end of a choice is unknown and counts as stop", finish)
        return "stop"

    def end_reason(self, finish: object) -> FinishReason:
        """Returns the reason of a choice that has ended: stop, unless the upstream says another.

        Raises ``StreamBroke`` as ``reason`` does.
        """
        return self.reason(finish) or "stop"

    def remark(self, oddity: str, given: object) -> None:
        """Note something odd that did not stop the answer."""
        self.remarks.setdefault(oddity, ascii(given)[:_SHOWN_CHARACTERS])

    def prefilled(self, scored: ScoredPrompt | None = None) -> list[Event]:
        """Returns the ``Prefilled`` event at the first call, nothing later."""
        if self._prefilled:
            return []
        self._prefilled = True
        return [Prefilled(self._index, self._job.prompt_tokens, 0, scored)]

    def counted(self, prompt: object, cached: object, *, completion_tokens: int = 0) -> Event:
        """Returns the event with the count of the prompt, as far as the upstream is believed.

        The prompt's own ids are counted here. Where the upstream alone can count, its number is
        believed as far as the request can cost it: prompt and ``completion_tokens`` together are at
        most the prompt's ids and ``max_tokens`` of each sequence.
        """
        own = most = self._job.prompt_tokens
        if self._estimated:
            ids = len(self._job.prompt_ids)
            most = ids + self._job.max_tokens * len(self._seqs) - completion_tokens
        given = self.believed("its count of prompt tokens is not believed", prompt, own, most)
        tokens = given if self._estimated else own
        kept = self.believed("its count of cached tokens is not believed", cached, 0, tokens)
        return Counted(self._index, tokens, kept)

    def believed(self, oddity: str, given: object, own: int, most: int) -> int:
        """Returns an upstream's count, at most ``most``; ``own`` if it gives no sensible one."""
        count = count_of(given)
        if count is None or not 0 <= count <= most:
            if given is not None:
                self.remark(oddity, given)
            return own if count is None or count < 0 else most
        return count or own

    def made(self, seq: int) -> int:
        """Returns the tokens of a sequence so far, at most ``max_tokens``."""
        return min(self._made[seq], self._job.max_tokens)

    def sampled(self, delta: TokenDelta) -> list[Event]:
        """Returns the events of a delta."""
        if delta.seq not in self._open:
            return []
        count, reason = self._cut(delta)
        events: list[Event] = []
        if count:
            self._made[delta.seq] += count
            events.append(self._sampled(delta, count))
        if reason is not None:
            events.append(self.ended(delta.seq, reason))
        return events

    def ended(self, seq: int, reason: FinishReason, made: int | None = None) -> Ended:
        """End a sequence and return its event; ``made`` is the upstream's own count of tokens."""
        self._open.discard(seq)
        return Ended(self._index, seq, reason, self.made(seq) if made is None else made)

    def incomplete(self, missing: Sequence[int]) -> StreamBroke:
        """Returns the failure of a stream that ended before some sequences did."""
        if len(missing) < len(self._seqs) and not any(self._made[seq] for seq in missing):
            return Incapable("it sent fewer choices than were asked for")
        return StreamBroke("it ended its stream without ending its choices")

    def unsaid(self, seq: int) -> FinishReason:
        """Returns the reason for an end that the upstream gave without one."""
        return "length" if self._made[seq] >= self._job.max_tokens else "stop"

    def _cut(self, delta: TokenDelta) -> tuple[int, FinishReason | None]:
        """Returns how many tokens of a delta count, and why the sequence ends with them, if so."""
        left = self._most - self._made[delta.seq]
        ids = delta.ids
        if not self._end_ids.isdisjoint(ids):
            for at, token in enumerate(ids[:left], 1):
                if token in self._end_ids:
                    return at, "stop"
        if delta.finish is not None:
            return min(len(ids), left), delta.finish
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
            add_top(top, k, self._job.scored_ids, top_ids, top_logprobs)
        _make_possible(logprobs)
        _make_possible(top_logprobs)
        return Sampled(self._index, delta.seq, tokens, logprobs, top_ids, top_logprobs)


def scored_prompt(
    logprobs: Sequence[float],
    tops: Sequence[Top],
    k: int,
    scored_ids: Sequence[int] = (),
    ranks: Sequence[int] = (),
) -> ScoredPrompt:
    """Returns the scores of a prompt's tokens after the first.

    Each has its ``k`` likeliest tokens and the ``scored_ids``. Raises ``Incapable`` if one of
    these is missing, and if a score is no log-probability.
    """
    top_ids, top_logprobs = array("i"), array("d")
    for top in tops:
        add_top(top, k, scored_ids, top_ids, top_logprobs)
    own = array("d", logprobs)
    _make_possible(own)
    _make_possible(top_logprobs)
    return ScoredPrompt(own, top_ids, top_logprobs, array("i", ranks))


def add_top(
    top: Top, k: int, scored_ids: Sequence[int], ids: array[int], logprobs: array[float]
) -> None:
    """Append the ``k`` likeliest, likeliest first, and then the ``scored_ids``.

    ``NO_TOKEN`` stands for likeliest ones that are missing, and for scored ones that are among
    the likeliest. Raises ``Incapable`` if another scored one is missing.
    """
    values = dict(top)
    likeliest = sorted(values.items(), key=_by_likelihood)[:k] if k else []
    missing = k - len(likeliest)
    ids.extend([token for token, _ in likeliest] + [NO_TOKEN] * missing)
    logprobs.extend([logprob for _, logprob in likeliest] + [0.0] * missing)
    if not scored_ids:
        return
    shown = {token for token, _ in likeliest}
    for token in scored_ids:
        if token not in values:
            raise Incapable("it did not score the tokens that were asked for")
        ids.append(NO_TOKEN if token in shown else token)
        logprobs.append(0.0 if token in shown else values[token])


def _make_possible(logprobs: array[float]) -> None:
    """Write 0 for what rounding put above it. Raises ``Incapable`` for larger ones.

    They are not the logarithm of any probability: some servers can be told to send logits instead.
    """
    if not logprobs or max(logprobs) <= 0:  # nearly always
        return
    for at, value in enumerate(logprobs):
        if value > _ROUNDING:
            raise Incapable("it sent a log-probability above 0")
        if value > 0:
            logprobs[at] = 0.0


def _by_likelihood(entry: tuple[int, float]) -> tuple[float, int]:
    return -entry[1], entry[0]
