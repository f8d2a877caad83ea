"""How tokens are spelled, and what a prompt's text is: what was sent, not what a tokenizer made."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterator, Sequence

import msgspec

from afterword.completion.text import Detokenizer

_MOST_CHARACTER_BYTES = 4
_SEARCHED_CHARACTERS = 4096
_SEARCHED_TOKENS = 8
"""How far ahead the end of what a vocabulary has no token for is looked for."""


class VocabView(msgspec.Struct, frozen=True):
    """A vocabulary as text is made of it. ``space_after``: see ``core.protocols.Tokenizer``."""

    pieces: Sequence[bytes]
    end_ids: frozenset[int]
    space_after: frozenset[int] | None = None

    def is_fresh(self, before: int | None) -> bool:
        """Whether the tokenizer puts a space before text after this token, None being the start."""
        return self.space_after is not None and (before is None or before in self.space_after)

    def piece(self, token: int, *, fresh: bool) -> bytes:
        """The bytes that a token adds to a text: without a space in front where it is ``fresh``."""
        piece = self.pieces[token]
        if fresh and piece[:1] == b" " and token not in (self.space_after or ()):
            return piece[1:]
        return piece

    def pieces_of(self, ids: Sequence[int]) -> Iterator[bytes]:
        """The bytes of a whole text's tokens."""
        before = None
        for token in ids:
            yield self.piece(token, fresh=self.is_fresh(before))
            before = token


class PromptText(msgspec.Struct, frozen=True):
    """A prompt as a choice sees it.

    ``ids`` are the visible tokens, without what the server added; ``hidden`` counts those.
    ``text`` is what was sent; of token ids, the complete characters of their bytes, ``dangling``
    being what is left of these. It is empty where neither text nor offsets are shown. ``offsets``
    has one for each visible token, where they are shown. ``fresh``: a tokenizer would put a space
    before text that follows.
    """

    ids: tuple[int, ...]
    hidden: int
    text: str
    dangling: bytes = b""
    offsets: tuple[int, ...] = ()
    fresh: bool = False


class Shown(msgspec.Struct, frozen=True):
    """What of a prompt is shown: its text (or lengths of it), and where its tokens stand."""

    text: bool
    offsets: bool


def prompt_of_text(sent: str, ids: Sequence[int], spelling: VocabView, shown: Shown) -> PromptText:
    """A prompt that was sent as text, by its visible ``ids`` (L8)."""
    return PromptText(
        tuple(ids),
        0,
        sent if shown.text else "",
        offsets=tuple(_offsets_in(sent, ids, spelling)) if shown.offsets else (),
        fresh=spelling.is_fresh(ids[-1] if ids else None),
    )


def prompt_of_ids(ids: Sequence[int], spelling: VocabView, shown: Shown) -> PromptText:
    """A prompt that was sent as token ids."""
    detokenizer = Detokenizer()
    fresh = spelling.is_fresh(ids[-1] if ids else None)
    if not shown.text:
        detokenizer.feed(_end(ids, spelling))
        return PromptText(tuple(ids), 0, "", detokenizer.pending, fresh=fresh)
    fed = [detokenizer.feed(piece) for piece in spelling.pieces_of(ids)]
    text = "".join(text for text, _ in fed)
    offsets = tuple(offset for _, offset in fed) if shown.offsets else ()
    return PromptText(tuple(ids), 0, text, detokenizer.pending, offsets, fresh)


def text_of_ids(ids: Sequence[int], spelling: VocabView) -> str:
    """The text of token ids; U+FFFD for a character that they leave incomplete."""
    return b"".join(spelling.pieces_of(ids)).decode(errors="replace")


def _end(ids: Sequence[int], spelling: VocabView) -> bytes:
    """The last bytes, enough to see whether they end inside a character."""
    raw = b""
    for token in reversed(ids):
        raw = spelling.pieces[token] + raw
        if len(raw) >= _MOST_CHARACTER_BYTES:
            break
    return raw


def _offsets_in(sent: str, ids: Sequence[int], spelling: VocabView) -> list[int]:
    """Where each token starts in the text it was made of."""
    raw = sent.encode()
    plain = [spelling.pieces[token] for token in ids]
    for pieces in (list(spelling.pieces_of(ids)), plain):
        if b"".join(pieces) == raw:
            detokenizer = Detokenizer()
            return [detokenizer.feed(piece)[1] for piece in pieces]
    return _aligned(sent, list(spelling.pieces_of(ids)))


def _aligned(sent: str, pieces: Sequence[bytes]) -> list[int]:
    """Offsets where a vocabulary normalises, or has no token for some characters.

    Letters are compared without case, accents and width, spaces not at all. A piece that is not
    found stands for all up to the next that is. Offsets ascend, and none is behind the text.
    """
    keys, at_character = _keyed(sent)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    wanted = ["".join(key for key, _ in _keys(decoder.decode(piece))) for piece in pieces]
    # ``at`` is of keys; between ``reached`` and ``here``, of characters, stands what has no key.
    offsets, at, reached = [], 0, 0
    for i, (piece, key) in enumerate(zip(pieces, wanted, strict=True)):
        here = at_character[at]
        found = keys.startswith(key, at)
        offsets.append(here if found and key and piece[:1] != b" " else reached)
        if not key:
            reached = min(reached + len(piece) - len(piece.strip()), here)
            continue
        end = at + len(key)
        if not found:
            ahead = wanted[i + 1 : i + 1 + _SEARCHED_TOKENS]
            end = _next(keys, at, at + (here == reached), ahead)
            if end == at:
                reached = min(reached + 1, here)
                continue
            offsets[-1] = here
        at = end
        # A character of several keys may go on.
        reached = min(at_character[end - 1] + 1, at_character[end])
    return offsets


def _next(keys: str, at: int, start: int, wanted: Sequence[str]) -> int:
    """Where one of the next tokens begins, from ``start`` on.

    The end if there is none; ``at`` if none is found.
    """
    following = next(filter(None, wanted), "")
    if not following:
        return len(keys)
    found = keys.find(following, start, at + _SEARCHED_CHARACTERS)
    return at if found < 0 else found


def _keyed(text: str) -> tuple[str, list[int]]:
    """The keys of a text's characters, and the offset of the character that each is of."""
    keys, offsets = [], []
    for key, offset in _keys(text):
        keys.append(key)
        offsets.append(offset)
    return "".join(keys), [*offsets, len(text)]


def _keys(text: str) -> Iterator[tuple[str, int]]:
    """Single characters that are compared in place of each of a text's, with its offset."""
    for offset, character in enumerate(text):
        for key in unicodedata.normalize("NFKD", character).casefold():
            if not (key.isspace() or unicodedata.combining(key)):
                yield key, offset
