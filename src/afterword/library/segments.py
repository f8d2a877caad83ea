"""A text in pieces with the log-probability of each: tokens, or several that share a character."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from afterword.library.token_names import bytes_of


class TextSpan(msgspec.Struct, frozen=True):
    """A part of a text and the tokens that wrote it, from ``first`` up to ``end``.

    ``logprob`` is the sum over these tokens, None if one of them has none.
    """

    text: str
    logprob: float | None
    first: int
    end: int


def segments(
    text: str, offsets: Sequence[int], logprobs: Sequence[float | None], *, base: int = 0
) -> Iterator[TextSpan]:
    """Yields the segments of a text whose first character has the offset ``base`` (L5).

    ``offsets`` and ``logprobs`` are those of its tokens. Text that no token wrote is a segment
    without tokens. Tokens that wrote none of it, such as an end token, are left out.
    """
    places = [min(max(offset - base, 0), len(text)) for offset in offsets]
    if text and (not places or places[0] > 0):
        yield TextSpan(text[: places[0] if places else None], None, 0, 0)
    first = 0
    while first < len(places):
        end = first + 1
        # Tokens inside a character have its offset.
        while end < len(places) and places[end] == places[first]:
            end += 1
        piece = text[places[first] : places[end] if end < len(places) else None]
        if piece:
            yield TextSpan(piece, _sum(logprobs[first:end]), first, end)
        first = end


def offsets_in(text: str, tokens: Sequence[str]) -> list[int] | None:
    """Returns the offset of each token in a text; None if their bytes are not the text's.

    A token that starts inside a character has that character's offset (L5).
    """
    pieces = list(map(bytes_of, tokens))
    if b"".join(pieces) != text.encode():
        return None
    offsets: list[int] = []
    characters = 0
    for piece in pieces:
        inside = _begun(piece[:1]) < len(piece[:1])
        offsets.append(characters - inside)
        characters += _begun(piece)
    return offsets


def _begun(raw: bytes) -> int:
    """Returns how many characters begin in bytes of UTF-8."""
    return sum(byte & 0xC0 != 0x80 for byte in raw)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
