"""A text in pieces with the log-probability of each: tokens, or several that share a character."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec


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


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
