"""The text of tokens, and of a prompt: what the client sent, not what a tokenizer made (L8)."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from afterword.completion.text import Detokenizer

_MOST_CHARACTER_BYTES = 4
_SEARCHED_CHARACTERS = 4096
_SEARCHED_TOKENS = 8
"""How far ahead a search looks for the next token, if the vocabulary has none for some text."""
_SPACE_OF_PIECES = "\u2581"
_DROPPED = frozenset(("Cc", "Cf"))
"""Categories of characters that BERT's tokenizer drops: control and format."""


class VocabView(msgspec.Struct, frozen=True):
    """The part of a vocabulary that makes text. See ``core.protocols.Tokenizer``."""

    pieces: Sequence[bytes]
    end_ids: frozenset[int]
    space_after: frozenset[int] | None = None
    aliases: Mapping[int, int] = {}

    def shown_id(self, token: int) -> int:
        """Returns the id that answers show for a token."""
        return self.aliases.get(token, token) if self.aliases else token

    def is_fresh(self, before: int | None) -> bool:
        """Whether the tokenizer puts a space before text after this token (None: at its start)."""
        return self.space_after is not None and (before is None or before in self.space_after)

    def piece(self, token: int, *, fresh: bool) -> bytes:
        """Returns the bytes that a token adds to a text. A ``fresh`` one loses a space in front."""
        piece = self.pieces[token]
        if fresh and piece[:1] == b" " and token not in (self.space_after or ()):
            return piece[1:]
        return piece

    def pieces_of(self, ids: Sequence[int]) -> Iterator[bytes]:
        """Yields the bytes of each token of a whole text."""
        before = None
        for token in ids:
            yield self.piece(token, fresh=self.is_fresh(before))
            before = token


class PromptText(msgspec.Struct, frozen=True):
    """A prompt as its choices see it.

    ``ids`` are the visible tokens. ``hidden`` counts the tokens that the server put before them.
    ``text`` is what the client sent. Of token ids it is the complete characters of their bytes, and
    ``dangling`` has the bytes after the last one. ``text`` is empty if the answer shows neither
    text nor offsets. ``offsets`` has one offset for each visible token, if they are shown.
    ``fresh``: a tokenizer would put a space before text that follows. ``framed`` counts the tokens
    of a chat template around the prompt, which no count shows.
    """

    ids: Sequence[int]
    hidden: int
    text: str
    dangling: bytes = b""
    offsets: tuple[int, ...] = ()
    fresh: bool = False
    framed: int = 0


class Shown(msgspec.Struct, frozen=True):
    """What an answer needs of a prompt: its text or length, and the offsets of its tokens."""

    text: bool
    offsets: bool


def fixed(ids: Sequence[int]) -> Sequence[int]:
    """Returns ids that nobody changes: the same ones if they are a tuple or bytes."""
    # A byte of text takes eight in a tuple, and copying millions of them holds the GIL.
    return ids if isinstance(ids, (tuple, bytes)) else tuple(ids)


def prompt_of_text(sent: str, ids: Sequence[int], vocab: VocabView, shown: Shown) -> PromptText:
    """Returns a prompt that was sent as text. ``ids`` are its visible tokens (L8)."""
    return PromptText(
        fixed(ids),
        0,
        sent if shown.text else "",
        offsets=tuple(_offsets_in(sent, ids, vocab)) if shown.offsets else (),
        fresh=vocab.is_fresh(ids[-1] if ids else None),
    )


def prompt_of_ids(ids: Sequence[int], vocab: VocabView, shown: Shown) -> PromptText:
    """Returns a prompt that was sent as token ids."""
    detokenizer = Detokenizer()
    fresh = vocab.is_fresh(ids[-1] if ids else None)
    if not shown.text:
        detokenizer.feed(_end(ids, vocab))
        return PromptText(fixed(ids), 0, "", detokenizer.pending, fresh=fresh)
    fed = [detokenizer.feed(piece) for piece in vocab.pieces_of(ids)]
    text = "".join(text for text, _ in fed)
    offsets = tuple(offset for _, offset in fed) if shown.offsets else ()
    return PromptText(fixed(ids), 0, text, detokenizer.pending, offsets, fresh)


def text_of_ids(ids: Sequence[int], vocab: VocabView) -> str:
    """Returns the text of token ids, with U+FFFD for an incomplete character."""
    return b"".join(vocab.pieces_of(ids)).decode(errors="replace")


def _end(ids: Sequence[int], vocab: VocabView) -> bytes:
    """Returns the last bytes, enough to see whether they end inside a character."""
    raw = b""
    for token in reversed(ids):
        raw = vocab.pieces[token] + raw
        if len(raw) >= _MOST_CHARACTER_BYTES:
            break
    return raw


def _offsets_in(sent: str, ids: Sequence[int], vocab: VocabView) -> list[int]:
    """Returns the offset of each token in the text that it was made of."""
    # Vocabularies that write a space as this character give one back in its place.
    spellings = sent.encode(), sent.replace(_SPACE_OF_PIECES, " ").encode()
    plain = [vocab.pieces[token] for token in ids]
    for pieces in (list(vocab.pieces_of(ids)), plain):
        if b"".join(pieces) in spellings:
            detokenizer = Detokenizer()
            return [detokenizer.feed(piece)[1] for piece in pieces]
    return _aligned(sent, list(vocab.pieces_of(ids)))


def _aligned(sent: str, pieces: Sequence[bytes]) -> list[int]:
    """Returns offsets if the vocabulary normalises, or has no token for some characters.

    Letters are compared without case, accents and width; spaces are not compared. A piece that is
    not found stands for all text up to the next piece that is found. Offsets ascend, and none is
    beyond the text's end.
    """
    keys, at_character = _keyed(sent)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    wanted = ["".join(key for key, _ in _keys(decoder.decode(piece))) for piece in pieces]
    # ``at`` counts keys. The characters from ``reached`` to ``here`` have no keys.
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
        # A character may have more keys.
        reached = min(at_character[end - 1] + 1, at_character[end])
    return offsets


def _next(keys: str, at: int, start: int, wanted: Sequence[str]) -> int:
    """Returns where the next token with a key begins, from ``start`` on.

    Returns the end if no token follows, and ``at`` if it is not found.
    """
    following = next(filter(None, wanted), "")
    if not following:
        return len(keys)
    found = keys.find(following, start, at + _SEARCHED_CHARACTERS)
    return at if found < 0 else found


def _keyed(text: str) -> tuple[str, list[int]]:
    """Returns the keys of a text, and the offset of each key's character."""
    keys, offsets = [], []
    for key, offset in _keys(text):
        keys.append(key)
        offsets.append(offset)
    return "".join(keys), [*offsets, len(text)]


def _keys(text: str) -> Iterator[tuple[str, int]]:
    """Yields the keys, which comparisons use in place of characters, and their offsets.

    What vocabularies take for a space, or drop, has none.
    """
    for offset, character in enumerate(text):
        for key in unicodedata.normalize("NFKD", character).casefold():
            if not (
                key.isspace()
                or key == _SPACE_OF_PIECES
                or unicodedata.combining(key)
                or unicodedata.category(key) in _DROPPED
            ):
                yield key, offset
