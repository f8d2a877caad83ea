"""Offsets ascend and stay inside the text, even if the vocabulary spells it otherwise."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.completion.prompt_text import Shown, VocabView, prompt_of_text

UNKNOWN = b"<unk>"
CHARACTERS = (
    "a", "hello", "1", " ", "  ", "\n", "\t", "\u3000", "\u00a0", "\u200b", "\u2028", "\u2581",
    "<0x0A>", "<unk>", "e\u0301", "\u0301", "\u0345", "\u0130", "\ufb01", "\u00df", "\u00c5",
    "\uac00", "\u3131", "\u2163", "\u00bd", "\ufdfa",
)  # fmt: skip
"""Letters, spaces of all kinds, marks, and characters that normalise to several."""


def offsets(sent: str, pieces: list[bytes]) -> list[int]:
    vocab = VocabView(pieces, frozenset(), frozenset())
    shown = Shown(text=True, offsets=True)
    return list(prompt_of_text(sent, range(len(pieces)), vocab, shown).offsets)


@pytest.mark.parametrize(
    ("sent", "pieces", "expected"),
    [
        (
            "\u3000<0x0A>",
            [b" ", UNKNOWN, *(bytes([b]) for b in b"<0x0A>")],
            [0, 0, 1, 2, 3, 4, 5, 6],
        ),
        ("\u3000a", [b" ", UNKNOWN, b"a"], [0, 0, 1]),
        ("\u30001", [b" ", UNKNOWN, b"1"], [0, 0, 1]),
        ("é1", [b" ", UNKNOWN, b"1"], [0, 0, 1]),
        ("Hello World", [b" hello", b" world"], [0, 5]),
        # U+2581 becomes a space, and U+200B is dropped.
        ("a\n\u2581\ne", [b"a", b"\n", b" \n", b"e"], [0, 1, 2, 4]),
        ("\u200b1 the", [b"1", b" the"], [1, 2]),
        # What has no key stays in its place beside U+2581.
        ("\u200b\u2581a", [b"\xe2\x80\x8b", b" a"], [0, 1]),
        ("\u3000\u2581 1", [b"\xe3", b"\x80", b"\x80", b"  1"], [0, 0, 0, 1]),
        ("e\u0301\u2581\u2581a", [b"e\xcc\x81", b"  a"], [0, 2]),
    ],
)
def test_offsets_of_what_a_vocabulary_cannot_spell(
    sent: str, pieces: list[bytes], expected: list[int]
) -> None:
    assert offsets(sent, pieces) == expected


@given(
    st.lists(st.tuples(st.sampled_from(CHARACTERS), st.integers(0, 3)), max_size=8),
)
def test_offsets_ascend_whatever_the_vocabulary_makes_of_a_text(
    parts: list[tuple[str, int]],
) -> None:
    pieces = [b" "]
    for part, how in parts:
        plain = unicodedata.normalize("NFKC", part).casefold().encode()
        pieces += {
            0: [part.encode()],
            1: [UNKNOWN],
            2: [b" " + plain],
            3: [bytes([byte]) for byte in plain],
        }[how]
    sent = "".join(part for part, _ in parts)
    found = offsets(sent, pieces)
    assert len(found) == len(pieces)
    assert found == sorted(found)
    assert all(0 <= offset <= len(sent) for offset in found)
