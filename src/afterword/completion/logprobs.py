"""Log-probability arrays in the shape of the wire (L1-L7)."""

from __future__ import annotations

from collections.abc import Sequence

from afterword.completion.prompt_text import VocabView
from afterword.core.job import NO_TOKEN
from afterword.core.wire import Logprobs

LOWEST = -9999.0
"""What minus infinity is on the wire (L7)."""


class LogprobsBuilder:
    """Four arrays that grow together; ``take`` empties them.

    A token is written as it stands in the text: where that is ``fresh``, without the tokenizer's
    own space (L8).
    """

    def __init__(self, spelling: VocabView) -> None:
        self._spelling = spelling
        self._clear()

    def __len__(self) -> int:
        return len(self._tokens)

    def add_first(self, token: int, offset: int, *, fresh: bool) -> None:
        """The prompt's first token, which nothing predicts (E2)."""
        self._tokens.append(token_text(self._spelling.piece(token, fresh=fresh)))
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
        """A token, the likeliest ones at its position in order, and its offset in the text."""
        logprob = finite(logprob)
        spelling = self._spelling
        text = token_text(spelling.piece(token, fresh=fresh))
        self._tokens.append(text)
        self._token_logprobs.append(logprob)
        top: dict[str, float] = {}
        # N or N + 1 entries (L3), also where two tokens are spelled alike.
        chosen_is_among = False
        for i, value in zip(top_ids, top_logprobs, strict=True):
            if i == token:
                chosen_is_among = True
                top[text] = logprob
            elif i != NO_TOKEN:
                key = token_text(spelling.piece(i, fresh=fresh))
                # What the chosen token is written as stands for it alone.
                key = bytes_text(spelling.pieces[i]) if key == text else key
                self._put(top, key, i, finite(value))
        if not chosen_is_among:
            top[text] = logprob
        self._top_logprobs.append(top)
        self._offsets.append(offset)

    def take(self) -> Logprobs:
        """All entries since the last call."""
        taken = Logprobs(self._tokens, self._token_logprobs, self._top_logprobs, self._offsets)
        self._clear()
        return taken

    def _clear(self) -> None:
        self._tokens: list[str] = []
        self._token_logprobs: list[float | None] = []
        self._top_logprobs: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def _put(self, top: dict[str, float], key: str, token: int, logprob: float) -> None:
        if key in top:
            key = bytes_text(self._spelling.pieces[token])
        while key in top:
            # A third token of the same bytes: vocabularies have none, but nothing forbids it.
            key += "\u200b"
        top[key] = logprob


def token_text(piece: bytes) -> str:
    r"""A token as text, or as ``bytes:\xe2\x80`` where it is not UTF-8 by itself (L4)."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return bytes_text(piece)


def bytes_text(piece: bytes) -> str:
    """A token as the bytes it is made of."""
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def finite(logprob: float) -> float:
    """JSON has no infinity (L7)."""
    return max(logprob, LOWEST)
