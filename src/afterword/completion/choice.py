"""One choice as it grows: events in, deltas out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Literal, TypeAlias, TypeVar

import msgspec

from afterword.completion.line_ends import IndentLimit
from afterword.completion.logprobs import LogprobsBuilder
from afterword.completion.prompt_text import PromptText, VocabView
from afterword.completion.text import Detokenizer, StopMatcher
from afterword.core.job import Ended, FinishReason, Sampled, ScoredPrompt
from afterword.core.wire import Logprobs

T = TypeVar("T")
EndedBy: TypeAlias = Literal["end_token", "stop_string", "limit"]

_SLICE_ENTRIES = 32


def _rows(values: Iterable[T], width: int) -> Iterator[tuple[T, ...]]:
    """Yields ``width`` values at a time; if ``width`` is 0, empty rows without end."""
    return zip(*[iter(values)] * width, strict=True) if width else repeat(())


class Presentation(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer shows of the choices of a request.

    ``logprobs`` and ``prompt_logprobs`` are numbers of alternatives, None if none are shown;
    ``prompt_logprobs`` are vLLM's. ``scored_ids`` are shown at every position, too. A stop string
    counts only behind the first ``min_tokens`` tokens. ``silent_ids`` are generated tokens that
    write no text. A choice ends before a line that is indented less than ``least_indent``, and with
    a line that is whole after ``most_ms`` milliseconds of generating; 0 and None are off.
    """

    echo: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    scored_ids: tuple[int, ...] = ()
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    min_tokens: int = 0
    silent_ids: frozenset[int] = frozenset()
    token_ids: bool = False
    tokens_as_ids: bool = False
    least_indent: int = 0
    most_ms: float | None = None


class Delta(msgspec.Struct, frozen=True):
    """What a choice gained since the last delta.

    Text, log-probability entries, its end, and the ids of its tokens. ``first`` is what only the
    first delta has.
    """

    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
    token_ids: list[int]
    first: bool = False


class ChoiceBuilder:
    """Folds the events of one sequence.

    Invariants: text that was given out is never taken back. ``finish_reason`` is set once, and
    later events change nothing. ``completion_tokens`` counts up to the token that ended the choice.
    """

    def __init__(self, vocab: VocabView, prompt: PromptText, shown: Presentation) -> None:
        self._vocab = vocab
        self._prompt = prompt
        self._shown = shown
        self._matcher = StopMatcher(shown.stops, include=shown.include_stop)
        self._indent = IndentLimit(shown.least_indent)
        self._free = not shown.stops and not shown.least_indent
        # The completion may complete a character whose first bytes end the prompt.
        self._detokenizer = Detokenizer(characters=len(prompt.text), pending=prompt.dangling)
        self._fresh = prompt.fresh
        self._entries: LogprobsBuilder | None = None
        if shown.logprobs is not None:
            self._entries = LogprobsBuilder(vocab, as_ids=shown.tokens_as_ids)
        self._ready = prompt.text if shown.echo else ""
        # Where the ready text of each entry ends, and the ids of generated tokens; not drained yet.
        self._ends: list[int] = []
        self._ids: list[int] = []
        self._wrote = False
        self._drained_once = False
        self._finish_given = False
        self.finish_reason: FinishReason | None = None
        self.ended_by: EndedBy | None = None
        self.completion_tokens = 0
        self.logprob_sum = 0.0

    def prefilled(self, scored: ScoredPrompt | None) -> Iterator[int]:
        """Take in the computed prompt. ``scored`` has its log-probabilities if they are echoed.

        Yields the values in each slice of entries once it is made. Run it to its end.
        """
        shown, prompt = self._shown, self._prompt
        if self._entries is None or not shown.echo or not prompt.ids:
            return
        ids, offsets, vocab = prompt.ids, prompt.offsets, self._vocab
        self._entries.add_first(ids[0], offsets[0], fresh=vocab.is_fresh(None))
        self._ends = [*offsets[1:], len(prompt.text)]
        if scored is None:
            return
        width = len(scored.top_ids) // max(len(scored.logprobs), 1)
        # ``scored`` begins at the prompt's second token and includes hidden tokens.
        first = prompt.hidden
        entries = zip(
            ids,
            ids[1:],
            offsets[1:],
            scored.logprobs[first:],
            _rows(scored.top_ids[first * width :], width),
            _rows(scored.top_logprobs[first * width :], width),
            strict=False,  # rows without entries do not end
        )
        for made, (before, token, offset, logprob, top_ids, top_logprobs) in enumerate(entries, 1):
            fresh = vocab.is_fresh(before)
            tops = self._shown_of(top_ids, top_ids), self._shown_of(top_ids, top_logprobs)
            self._entries.add(token, logprob, *tops, offset, fresh=fresh)
            if made % _SLICE_ENTRIES == 0:
                yield _SLICE_ENTRIES * (width + 2)

    def _shown_of(self, ids: tuple[int, ...], entries: tuple[T, ...]) -> tuple[T, ...]:
        """Returns the entries of a prompt's token without those that only vLLM's shape shows.

        ``ids`` are the tokens of the entries. Ids that were asked for are among the likeliest ones
        if they are likely enough, and otherwise behind them.
        """
        shown = self._shown
        k = shown.logprobs or 0
        most = max(k, shown.prompt_logprobs or 0)
        if most == k:
            return entries
        others = zip(ids[k:most], entries[k:most], strict=True)
        asked = tuple(entry for token, entry in others if token in shown.scored_ids)
        return entries[:k] + asked + entries[most:]

    @property
    def stop_met(self) -> str:
        """The stop string that ended the choice; empty if none did."""
        return self._matcher.met

    def sampled(self, event: Sampled, *, late: bool = False) -> bool:
        """Take in generated tokens. Returns True if their text ends the choice.

        ``late``: the next line to be whole is the last one.
        """
        if self.finish_reason is not None:
            return False
        width = len(event.top_ids) // len(event.tokens)
        scored = bool(event.logprobs)
        vocab, silent, fresh = self._vocab, self._shown.silent_ids, self._fresh
        logprobs = event.logprobs if scored else repeat(0.0)
        # Without log-probabilities ``logprobs`` does not end, so zip cannot be strict.
        for at, (token, logprob) in enumerate(zip(event.tokens, logprobs, strict=False)):
            self.completion_tokens += 1
            self.logprob_sum += logprob
            piece = b"" if token in silent else vocab.piece(token, fresh=fresh)
            text, offset = self._detokenizer.feed(piece)
            if self._entries is not None:
                top = slice(at * width, (at + 1) * width)
                tops = event.top_ids[top], event.top_logprobs[top]
                self._entries.add(token, logprob, *tops, offset, fresh=fresh)
            self._fresh = fresh = vocab.is_fresh(token)
            if piece:
                self._wrote = True
            stopped = bool(text) and self._take_in(text, late=late)
            self._ids.append(vocab.shown_id(token))
            self._ends.append(len(self._ready))
            if stopped:
                return True
        return False

    def ended(self, event: Ended) -> None:
        """Take in the end. Held text is flushed, which may still complete a stop string."""
        if self.finish_reason is not None:
            return
        # Some engines know the number of tokens only at the end.
        self.completion_tokens = event.completion_tokens
        if self._wrote or self._shown.echo:
            rest = self._detokenizer.flush()
            if rest and self._wrote:
                if self._take_in(rest):
                    return
            else:
                self._ready += rest
        if self._give(self._matcher.flush(), late=False):
            return
        self.finish_reason = event.reason
        self.ended_by = "end_token" if event.reason == "stop" else "limit"

    def drain(self) -> Delta | None:
        """Returns what is new since the last call, or None if nothing is.

        The first delta comes with the first token, even if its text is held back (S7).
        """
        if not self._has_news():
            return None
        entries = self._entries
        text, ids = self._ready, self._ids
        delta = Delta(
            text,
            entries.take() if entries is not None else None,
            None if self._finish_given else self.finish_reason,
            ids,
            not self._drained_once,
        )
        self._drained()
        return delta

    @property
    def undrained_tokens(self) -> int:
        """How many generated tokens no delta has shown."""
        return len(self._ids)

    def drain_each(self) -> Iterator[Delta]:
        """Yields what ``drain`` returns, with one log-probability entry in each delta (S9).

        The deltas are made one by one, because there may be 100,000. The builder has given out
        all of them with the first.
        """
        if self._entries is None or len(self._entries) < 2:
            whole = self.drain()
            if whole is not None:
                yield whole
            return
        text, ids, ends = self._ready, self._ids, self._ends
        finish = None if self._finish_given else self.finish_reason
        first, start = not self._drained_once, 0
        count = len(self._entries)
        echoed, last = count - len(ids), count - 1
        each = self._entries.take_each()
        self._drained()
        for at, (entry, end) in enumerate(zip(each, ends, strict=True)):
            own = ids[at - echoed : at - echoed + 1] if at >= echoed else []
            if at == last:
                yield Delta(text[start:], entry, finish, own, first)
            else:
                yield Delta(text[start:end], entry, None, own, first)
            start, first = end, False

    def _has_news(self) -> bool:
        if not self.completion_tokens and self.finish_reason is None:
            return False
        ending = self.finish_reason is not None and not self._finish_given
        ids = self._shown.token_ids and self._ids
        return ending or not self._drained_once or bool(self._ready or ids or self._entries)

    def _drained(self) -> None:
        self._drained_once = True
        self._finish_given = self._finish_given or self.finish_reason is not None
        self._ready, self._ids, self._ends = "", [], []

    def _take_in(self, text: str, *, late: bool = False) -> bool:
        if self._free and not late:  # nearly always
            self._ready += text
            return False
        # A stop string counts only if it completes after the first ``min_tokens`` tokens (R17).
        counts = self.completion_tokens > self._shown.min_tokens
        ready, stopped = self._matcher.feed(text, counts=counts)
        if self._give(ready, late=late):
            return True
        if stopped:
            self.finish_reason, self.ended_by = "stop", "stop_string"
        return stopped

    def _give(self, text: str, *, late: bool) -> bool:
        """Give out text. Returns True if its lines end the choice."""
        kept, over = self._indent.feed(text)
        self._ready += kept
        if over or (late and "\n" in kept):
            self.finish_reason, self.ended_by = "length", "limit"
            return True
        return False
