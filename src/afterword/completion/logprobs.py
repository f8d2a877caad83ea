"""Log-probability arrays in the shape of the wire (L1 to L8)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from afterword.completion.prompt_text import VocabView
from afterword.core.job import NO_TOKEN, ScoredPrompt
from afterword.core.token_text import bytes_text, token_text
from afterword.core.wire import LOWEST, Logprobs, PromptLogprob, PromptLogprobs


class LogprobsBuilder:
    """Four arrays that grow together. ``take`` empties them.

    A token is written as it stands in the text. A ``fresh`` one is written without the space that
    the tokenizer put in front (L8). With ``as_ids`` tokens are written ``token_id:ID`` (R17), but
    for those that an upstream sent without an id.
    """

    def __init__(self, vocab: VocabView, *, as_ids: bool = False) -> None:
        self._vocab = vocab
        self._as_ids = as_ids
        self._clear()

    def __len__(self) -> int:
        return len(self._tokens)

    def add_first(self, token: int, offset: int, *, fresh: bool) -> None:
        """Add the prompt's first token, which has no log-probability (E2)."""
        self._tokens.append(self._text(token, fresh=fresh))
        self._token_logprobs.append(None)
        self._top_logprobs.append(None)
        self._offsets.append(offset)

    def add(
        self,
        token: int,
        logprob: float,
        top_ids: Sequence[int],
        top_logprobs: Sequence[float],
        offset: int,
        *,
        fresh: bool,
    ) -> None:
        """Add a token, the likeliest tokens at its position in order, and its text offset."""
        logprob = finite(logprob)
        token = self._vocab.shown_id(token)
        text = self._text(token, fresh=fresh)
        self._tokens.append(text)
        self._token_logprobs.append(logprob)
        top: dict[str, float] = {}
        for i, value in zip(top_ids, top_logprobs, strict=True):
            if i == token:
                top[text] = logprob
            elif i != NO_TOKEN:
                top[self._key(i, top, text, fresh=fresh)] = finite(value)
        top.setdefault(text, logprob)
        self._top_logprobs.append(top)
        self._offsets.append(offset)

    def take(self) -> Logprobs:
        """Returns all entries since the last call."""
        taken = Logprobs(self._tokens, self._token_logprobs, self._top_logprobs, self._offsets)
        self._clear()
        return taken

    def take_each(self) -> Iterator[Logprobs]:
        """Yields what ``take`` returns, as one item for each entry, and keeps none that it gave."""
        taken = self.take()
        columns = taken.tokens, taken.token_logprobs, taken.top_logprobs, taken.text_offset
        for column in columns:
            column.reverse()
        a, b, c, d = columns
        while a:
            yield Logprobs([a.pop()], [b.pop()], [c.pop()], [d.pop()])

    def _text(self, token: int, *, fresh: bool) -> str:
        if self._as_ids and token < len(self._vocab.pieces):
            return f"token_id:{token}"
        return token_text(self._vocab.piece(token, fresh=fresh))

    def _clear(self) -> None:
        self._tokens: list[str] = []
        self._token_logprobs: list[float | None] = []
        self._top_logprobs: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def _key(self, token: int, top: Mapping[str, float], chosen: str, *, fresh: bool) -> str:
        """Returns a name that no entry has, and that is not the text of the ``chosen`` token.

        So there are N or N + 1 entries (L3), even if two tokens have the same text.
        """
        key = self._text(token, fresh=fresh)
        if key == chosen or key in top:
            key = bytes_text(self._vocab.pieces[token])
        while key == chosen or key in top:
            # Tokens with the same bytes. No known vocabulary has more than two, but one may.
            key += "\u200b"
        return key


def prompt_logprobs(
    ids: Sequence[int], scored: ScoredPrompt | None, k: int, vocab: VocabView
) -> Iterator[PromptLogprobs | None]:
    """Yields vLLM's log-probabilities of a prompt, with the ``k`` likeliest tokens.

    There is one entry for each of ``ids``, and null for the first. ``scored`` has ranks, and may
    have more of the likeliest tokens.
    """
    yield None
    if scored is None:
        return
    width = len(scored.top_ids) // max(len(scored.logprobs), 1)
    for at, (token, logprob, rank) in enumerate(
        zip(ids[1:], scored.logprobs, scored.ranks, strict=True)
    ):
        shown = {token: (logprob, rank)}
        start = at * width
        top = zip(
            scored.top_ids[start : start + k], scored.top_logprobs[start : start + k], strict=True
        )
        for place, (other, value) in enumerate(top, 1):
            shown.setdefault(other, (value, place))
        yield {
            i: PromptLogprob(finite(value), place, token_text(vocab.pieces[i]))
            for i, (value, place) in shown.items()
            if i != NO_TOKEN
        }


def finite(logprob: float) -> float:
    """Returns the log-probability, at least ``LOWEST``, because JSON has no infinity (L7)."""
    return max(logprob, LOWEST)
