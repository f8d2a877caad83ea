"""One choice as it grows: events in, deltas out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import TypeVar

import msgspec

from afterword.completion.logprobs import LogprobsBuilder
from afterword.completion.prompt_text import PromptText, VocabView
from afterword.completion.text import Detokenizer, StopMatcher
from afterword.core.job import Ended, FinishReason, Sampled, ScoredPrompt
from afterword.core.wire import Logprobs

T = TypeVar("T")

_SLICE_ENTRIES = 32


def _rows(values: Iterable[T], width: int) -> Iterator[tuple[T, ...]]:
    """Yields ``width`` values at a time; if ``width`` is 0, empty rows without end."""
    return zip(*[iter(values)] * width, strict=True) if width else repeat(())


class Delta(msgspec.Struct, frozen=True):
    """What a choice gained since the last delta: text, log-probability entries, its end."""

    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChoiceBuilder:
    """Folds the events of one sequence.

    Invariants: text that was given out is never taken back. ``finish_reason`` is set once, and
    later events change nothing. ``completion_tokens`` counts up to the token that ended the choice.
    """

    def __init__(
        self,
        vocab: VocabView,
        prompt: PromptText,
        *,
        stops: Sequence[str],
        min_tokens: int,
        echo: bool,
        logprobs: bool,
    ) -> None:
        self._vocab = vocab
        self._prompt = prompt
        self._echo = echo
        self._matcher = StopMatcher(stops)
        self._min_tokens = min_tokens
        # The completion may complete a character whose first bytes end the prompt.
        self._detokenizer = Detokenizer(characters=len(prompt.text), pending=prompt.dangling)
        self._fresh = prompt.fresh
        self._entries = LogprobsBuilder(vocab) if logprobs else None
        self._ready = prompt.text if echo else ""
        self._wrote = False
        self._drained_once = False
        self._finish_given = False
        self.finish_reason: FinishReason | None = None
        self.completion_tokens = 0
        self.logprob_sum = 0.0

    def prefilled(self, scored: ScoredPrompt | None) -> Iterator[int]:
        """Take in the computed prompt. ``scored`` has its log-probabilities if they are echoed.

        Yields the values in each slice of entries once it is made. Run it to its end.
        """
        if self._entries is None or not self._echo or not self._prompt.ids:
            return
        ids, offsets, vocab = self._prompt.ids, self._prompt.offsets, self._vocab
        self._entries.add_first(ids[0], offsets[0], fresh=vocab.is_fresh(None))
        if scored is None:
            return
        width = len(scored.top_ids) // max(len(scored.logprobs), 1)
        # ``scored`` begins at the prompt's second token and includes hidden tokens.
        first = self._prompt.hidden
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
            self._entries.add(token, logprob, top_ids, top_logprobs, offset, fresh=fresh)
            if made % _SLICE_ENTRIES == 0:
                yield _SLICE_ENTRIES * (width + 2)

    def sampled(self, event: Sampled) -> bool:
        """Take in generated tokens. Returns True if they complete a stop string."""
        if self.finish_reason is not None:
            return False
        width = len(event.top_ids) // len(event.tokens)
        scored = bool(event.logprobs)
        vocab, end_ids, fresh = self._vocab, self._vocab.end_ids, self._fresh
        logprobs = event.logprobs if scored else repeat(0.0)
        # Without log-probabilities ``logprobs`` does not end, so zip cannot be strict.
        for at, (token, logprob) in enumerate(zip(event.tokens, logprobs, strict=False)):
            self.completion_tokens += 1
            self.logprob_sum += logprob
            piece = b"" if token in end_ids else vocab.piece(token, fresh=fresh)
            text, offset = self._detokenizer.feed(piece)
            if self._entries is not None:
                top = slice(at * width, (at + 1) * width)
                tops = event.top_ids[top], event.top_logprobs[top]
                self._entries.add(token, logprob, *tops, offset, fresh=fresh)
            self._fresh = fresh = vocab.is_fresh(token)
            if piece:
                self._wrote = True
            if text and self._take_in(text):
                return True
        return False

    def ended(self, event: Ended) -> None:
        """Take in the end. Held text is flushed, which may still complete a stop string."""
        if self.finish_reason is not None:
            return
        # Some engines know the number of tokens only at the end.
        self.completion_tokens = event.completion_tokens
        if self._wrote or self._echo:
            rest = self._detokenizer.flush()
            if rest and self._wrote:
                if self._take_in(rest):
                    return
            else:
                self._ready += rest
        self._ready += self._matcher.flush()
        self.finish_reason = event.reason

    def drain(self) -> Delta | None:
        """Returns what is new since the last call, or None if nothing is.

        The first delta comes with the first token, even if its text is held back (S7).
        """
        if not self.completion_tokens and self.finish_reason is None:
            return None
        finish = None if self._finish_given else self.finish_reason
        entries = self._entries
        if self._drained_once and not self._ready and not entries and finish is None:
            return None
        self._drained_once = True
        self._finish_given = self._finish_given or finish is not None
        text, self._ready = self._ready, ""
        return Delta(text, entries.take() if entries is not None else None, finish)

    def _take_in(self, text: str) -> bool:
        # A stop string counts only if it completes after the first ``min_tokens`` tokens (R17).
        counts = self.completion_tokens > self._min_tokens
        ready, stopped = self._matcher.feed(text, counts=counts)
        self._ready += ready
        if stopped:
            self.finish_reason = "stop"
        return stopped
