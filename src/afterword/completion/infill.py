"""Fill in the middle: lays out prefix and suffix as the model's family expects (F1, F2, F5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from afterword.completion.encoding import encode, least_tokens
from afterword.core.errors import InvalidRequest
from afterword.core.protocols import InfillTokens, Tokenizer

INFILL_TOKENS = 4
"""The most tokens that ``lay_out`` adds to prefix and suffix."""
MOST_SUFFIX_TOKENS = 256
"""The most tokens of a suffix that a place uses, as with llama-server's settings for editors.

A suffix is computed anew after each keystroke, because it stands behind the cursor.
"""
_REPOSITORY = "myproject\n"
_THIS_FILE = "filename\n"
_SEPARATOR = "\n\n--- snippet ---\n\n"
_STEPS = 8
"""A context is divided into so many steps; what does not fit is cut at their ends."""


class Snippet(msgspec.Struct, frozen=True):
    """A part of another file, or of another place of this file."""

    text: str
    filename: str


class Place(msgspec.Struct, frozen=True):
    """Where a middle belongs: between prefix and suffix, behind what is ``typed`` of its line.

    ``snippets`` stand before the file, the most important last.
    """

    snippets: tuple[Snippet, ...] = ()
    typed: str = ""


class LaidOut(msgspec.Struct, frozen=True):
    """The ids of a prompt, and whether some of the text did not fit."""

    ids: tuple[int, ...]
    cut: bool


def infill_tokens(tokenizer: Tokenizer, param: str = "suffix") -> InfillTokens:
    """Returns the fill-in-the-middle tokens. Raises ``InvalidRequest`` if there are none (F3)."""
    if tokenizer.infill is None:
        raise InvalidRequest(
            f"This model has no fill-in-the-middle tokens and cannot honour '{param}'. Take a "
            "model for code, or POST /v1/completions with 'suffix', which searches for a middle.",
            param=param,
        )
    return tokenizer.infill


def lay_out(
    tokens: InfillTokens,
    bos_id: int | None,
    prefix: Sequence[int],
    suffix: Sequence[int],
    before: Sequence[int] = (),
) -> tuple[int, ...]:
    """Returns the ids of a prompt that asks for the text between ``prefix`` and ``suffix``.

    ``before`` are the ids of other files.
    """
    start = () if bos_id is None else (bos_id,)
    middle = () if tokens.middle_id is None else (tokens.middle_id,)
    first = (tokens.prefix_id, *prefix)
    second = (tokens.suffix_id, *suffix)
    ordered = (*first, *second) if tokens.order == "psm" else (*second, *first)
    return (*start, *before, *ordered, *middle)


def texts_around(place: Place) -> Iterator[str]:
    """Yields the texts that ``lay_out_place`` tokenises if they can fit the context."""
    yield from (_REPOSITORY, _THIS_FILE, _SEPARATOR)
    for snippet in place.snippets:
        yield snippet.text
        yield _title(snippet)


def lay_out_place(
    prefix: Sequence[int],
    suffix: Sequence[int],
    place: Place,
    tokenizer: Tokenizer,
    room: PlaceRoom,
) -> LaidOut:
    """Returns a prompt of a place: other files, then what stands before and after it.

    What is cut is cut in large steps, so that a prompt begins as the one before it while its line
    is typed: snippets whole and from the first, the prefix from its start, the suffix at its end.
    """
    tokens = infill_tokens(tokenizer, "input_suffix")
    after = suffix[: room.suffix_tokens(len(prefix), len(suffix))]
    before = prefix[room.dropped(len(prefix), room.whole - len(after)) :]
    context, all_there = _context(
        place.snippets, tokens, tokenizer, room.left(len(before) + len(after))
    )
    cut = not all_there or len(before) < len(prefix) or len(after) < len(suffix)
    return LaidOut(lay_out(tokens, tokenizer.bos_id, before, after, context), cut)


class PlaceRoom(msgspec.Struct, frozen=True):
    """How many tokens of a context its parts may have. ``reserved`` are for the completion."""

    context_tokens: int
    reserved: int

    @staticmethod
    def of(context_tokens: int, asked: int | None) -> PlaceRoom:
        """Returns the room beside ``asked`` tokens. Small numbers reserve the same room.

        So a request that only warms the cache is cut as the next one is.
        """
        step = max(context_tokens // _STEPS, 1)
        return PlaceRoom(context_tokens, min(max(asked or 0, step), context_tokens // 2))

    @property
    def whole(self) -> int:
        """The room for everything but the tokens of the layout."""
        return max(self.context_tokens - self.reserved - INFILL_TOKENS, 0)

    def suffix_tokens(self, prefix: int, suffix: int) -> int:
        """Returns how many tokens of a suffix stay: a quarter of the room, or what is free."""
        if prefix + min(suffix, MOST_SUFFIX_TOKENS) <= self.whole:
            return min(suffix, MOST_SUFFIX_TOKENS)
        free = self.whole - _rounded_up(prefix, self._step)
        return min(suffix, MOST_SUFFIX_TOKENS, max(self.whole // 4, free))

    def left(self, taken: int) -> int:
        """Returns the room for other files. It changes only with every step of ``taken``."""
        return self.whole - _rounded_up(taken, self._step)

    def dropped(self, tokens: int, room: int) -> int:
        """Returns how many tokens at the start are cut, in steps, so that the rest fits."""
        if tokens <= room:
            return 0
        return min(_rounded_up(tokens - room, max(room // 4, 1)), tokens)

    @property
    def _step(self) -> int:
        return max(self.context_tokens // _STEPS, 1)


def _rounded_up(count: int, step: int) -> int:
    return -(-count // step) * step


def _context(
    snippets: Sequence[Snippet], tokens: InfillTokens, tokenizer: Tokenizer, room: int
) -> tuple[list[int], bool]:
    """Returns the ids of the last snippets that fit, and whether all do."""
    if not snippets:
        return [], True
    head: list[int] = []
    tail: list[int] = []
    if tokens.repository_id is not None:
        head = [tokens.repository_id, *_ids(_REPOSITORY, tokenizer)]
    if tokens.file_id is not None:
        tail = [tokens.file_id, *_ids(_THIS_FILE, tokenizer)]
    room -= len(head) + len(tail)
    kept: list[list[int]] = []
    for snippet in reversed(snippets):
        # Text that cannot fit is not tokenised.
        if least_tokens(_title(snippet), tokenizer) + least_tokens(snippet.text, tokenizer) > room:
            break
        ids = [*_heading(snippet, tokens, tokenizer), *_ids(snippet.text, tokenizer)]
        room -= len(ids)
        if room < 0:
            break
        kept.append(ids)
    if not kept:
        return [], False
    middle = [token for ids in reversed(kept) for token in ids]
    return [*head, *middle, *tail], len(kept) == len(snippets)


def _heading(snippet: Snippet, tokens: InfillTokens, tokenizer: Tokenizer) -> list[int]:
    """Returns the ids between two snippets."""
    if tokens.file_id is None:
        return list(_ids(_SEPARATOR, tokenizer))
    return [tokens.file_id, *_ids(_title(snippet), tokenizer)]


def _title(snippet: Snippet) -> str:
    return f"{snippet.filename}\n"


def _ids(text: str, tokenizer: Tokenizer) -> Sequence[int]:
    return encode("input_extra", text, tokenizer, parse_special=False, continues=True)
