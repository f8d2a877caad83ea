"""Laws of text: any split of the bytes gives the same text, and a naive search the same stops."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from afterword.completion.text import Detokenizer, StopMatcher
from support.examples import examples

# Whole characters, pieces of characters, and bytes that are never valid.
BYTES = st.lists(
    st.sampled_from(["a", "é", "中", "🙂", "\u0301"]).map(str.encode)
    | st.binary(min_size=1, max_size=3)
    | st.sampled_from([b"\xe2\x80", b"\xf0\x9f", b"\xc3", b"\xff", b"\xf0\x9f\x99", b"\xed\xa0"]),
    max_size=12,
).map(b"".join)
ALPHABET = st.sampled_from("ab")
STOPS = st.lists(
    st.text(ALPHABET, min_size=1, max_size=3) | st.text(ALPHABET, min_size=4, max_size=9),
    min_size=1,
    max_size=4,
)


def split(whole: bytes | str, cuts: list[int]) -> list[bytes | str]:
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    return [whole[a:b] for a, b in itertools.pairwise(edges)]


@given(data=BYTES, cuts=st.lists(st.integers(0, 40)))
def test_any_split_of_the_bytes_gives_the_same_text(data: bytes, cuts: list[int]) -> None:
    detokenizer = Detokenizer()
    text = ""
    for piece in split(data, cuts):
        assert isinstance(piece, bytes)
        text += detokenizer.feed(piece)[0]
        # A token may write nothing.
        text += detokenizer.feed(b"")[0]
    text += detokenizer.flush()
    assert text == data.decode("utf-8", "replace")
    assert detokenizer.characters == len(text)


@given(data=BYTES, cuts=st.lists(st.integers(0, 40)), begun=st.integers(0, 4))
def test_an_offset_is_that_of_the_character_the_piece_starts_in(
    data: bytes, cuts: list[int], begun: int
) -> None:
    """L5: the offset is the index of the character that the piece's first byte belongs to."""
    begins: list[int] = []
    at = 0
    for character in decoded(data):
        begins.append(at)
        at += len(character)
    detokenizer = Detokenizer()
    at = 0
    for number, piece in enumerate(split(data, cuts)):
        assert isinstance(piece, bytes)
        if number == begun:
            # The pieces before are the prompt's.
            detokenizer = Detokenizer(
                characters=detokenizer.characters, pending=detokenizer.pending
            )
        _, offset = detokenizer.feed(piece)
        assert offset == sum(begin <= at for begin in begins) - 1
        at += len(piece)


def decoded(data: bytes) -> list[bytes]:
    """Returns the bytes of each character of the text, by Python's own decoder."""
    parts: list[bytes] = []
    while data:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            parts += [c.encode() for c in data[: error.start].decode()]
            parts.append(data[error.start : error.end])
            data = data[error.end :]
        else:
            parts += [c.encode() for c in data.decode()]
            break
    return parts


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    """Returns the text before the stop that completes first (the longest of several)."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(
    text=st.text(ALPHABET, max_size=40),
    stops=STOPS | st.just([]),
    cuts=st.lists(st.integers(0, 40)),
    include=st.booleans(),
)
@settings(max_examples=examples(300))
def test_stops_are_those_of_a_naive_search(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    matcher = StopMatcher(stops, include=include)
    given_out, met = "", False
    for piece in split(text, cuts):
        assert isinstance(piece, str)
        part, met = matcher.feed(piece)
        given_out += part
        if met:
            break
    given_out += matcher.flush()
    before, found = naive(text, stops)
    assert (met, matcher.met in stops) == (found, found)
    assert given_out == (before + matcher.met if include else before)
    assert text.startswith(before + matcher.met)


@given(before=st.text(ALPHABET, max_size=12), text=st.text(ALPHABET, max_size=12), stops=STOPS)
def test_a_stop_counts_if_it_completes_after_text_that_does_not_count(
    before: str, text: str, stops: list[str]
) -> None:
    matcher = StopMatcher(stops)
    given_out, met = matcher.feed(before, counts=False)
    assert not met
    part, met = matcher.feed(text)
    ends = [
        (at + len(stop), -len(stop))
        for stop in stops
        for at in range(len(before + text))
        if (before + text).startswith(stop, at) and at + len(stop) > len(before)
    ]
    assert met == bool(ends)
    if met:
        assert given_out + part == (before + text)[: sum(min(ends))]
    else:
        assert given_out + part + matcher.flush() == before + text


@given(text=st.text(ALPHABET, max_size=12), stops=STOPS)
def test_only_what_could_become_a_stop_is_held_back(text: str, stops: list[str]) -> None:
    """S2: only the longest end of the text that begins a stop is held back."""
    matcher = StopMatcher(stops)
    given_out, met = matcher.feed(text)
    if met:
        return
    could_be = max(
        size
        for stop in stops
        for size in range(len(stop))
        if text.endswith(stop[:size]) and size <= len(text)
    )
    assert given_out == text[: len(text) - could_be]
