"""Layouts of a place (F5): other files in the family's tokens, and cuts that stay."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.completion.infill import MOST_SUFFIX_TOKENS, LaidOut, Place, PlaceRoom, Snippet
from afterword.completion.infill import lay_out_place as lay_out
from afterword.engine.toy import ToyTokenizer

REPOSITORY, FILE = 1000, 1001
SNIPPETS = (Snippet("one", "a.py"), Snippet("two", "b.py"))


def tokenizer_of(*, repository: bool = True, file: bool = True) -> ToyTokenizer:
    tokenizer = ToyTokenizer()
    assert tokenizer.infill is not None
    tokenizer.infill = msgspec.structs.replace(
        tokenizer.infill,
        repository_id=REPOSITORY if repository else None,
        file_id=FILE if file else None,
    )
    return tokenizer


def laid_out(tokenizer: ToyTokenizer, place: Place, *, context: int = 1000) -> LaidOut:
    before, after = tokenizer.encode("ab"), tokenizer.encode("cd")
    return lay_out(before, after, place, tokenizer, PlaceRoom.of(context, 16))


def test_F5_a_familys_own_tokens() -> None:
    tokenizer = tokenizer_of()
    encode = tokenizer.encode
    bare = laid_out(tokenizer, Place())
    assert bare.ids[0] == tokenizer.infill.prefix_id  # type: ignore[union-attr]
    expected = [
        REPOSITORY, *encode("myproject\n"),
        FILE, *encode("a.py\n"), *encode("one"),
        FILE, *encode("b.py\n"), *encode("two"),
        FILE, *encode("filename\n"),
        *bare.ids,
    ]  # fmt: skip
    assert laid_out(tokenizer, Place(SNIPPETS)) == LaidOut(tuple(expected), cut=False)


def test_F5_a_family_with_a_token_for_files_alone() -> None:
    tokenizer = tokenizer_of(repository=False)
    found = laid_out(tokenizer, Place(SNIPPETS[:1])).ids
    assert found[:6] == (FILE, *tokenizer.encode("a.py\n"))
    assert REPOSITORY not in found


def test_F5_a_family_without_such_tokens() -> None:
    tokenizer = tokenizer_of(repository=False, file=False)
    text = tokenizer.encode("\n\n--- snippet ---\n\none")
    found = laid_out(tokenizer, Place(SNIPPETS[:1])).ids
    assert list(found[: len(text)]) == text


def test_F5_special_names_in_snippets_are_text() -> None:
    tokenizer = tokenizer_of()
    place = Place((Snippet("<|fim_middle|>", "<|endoftext|>"),))
    special = [i for i in laid_out(tokenizer, place).ids if i in tokenizer.special_ids]
    assert len(special) == 3


def test_F5_the_first_snippets_are_left_out() -> None:
    tokenizer = tokenizer_of()
    place = Place(tuple(Snippet("x" * 30, f"{i}.py") for i in range(9)))
    found = laid_out(tokenizer, place, context=256)
    assert found.cut
    ids = found.ids
    kept = [i for i in range(9) if _holds(ids, [FILE, *tokenizer.encode(f"{i}.py\n")])]
    assert kept == list(range(kept[0], 9))
    assert len(ids) + 16 <= 256


def _holds(ids: tuple[int, ...], part: list[int]) -> bool:
    return any(list(ids[at : at + len(part)]) == part for at in range(len(ids)))


@given(
    prefix=st.integers(0, 3000), suffix=st.integers(0, 3000), context=st.integers(16, 2000),
    asked=st.none() | st.integers(0, 3000),
)  # fmt: skip
def test_F5_every_layout_fits(prefix: int, suffix: int, context: int, asked: int | None) -> None:
    tokenizer = tokenizer_of()
    room = PlaceRoom.of(context, asked)
    found = lay_out([65] * prefix, [66] * suffix, Place(SNIPPETS), tokenizer, room)
    assert len(found.ids) <= context - min(asked or 1, 1)
    whole = prefix + min(suffix, MOST_SUFFIX_TOKENS) <= room.whole
    assert found.ids.count(66) == min(suffix, MOST_SUFFIX_TOKENS) or not whole
    if suffix and prefix and room.whole > 8:
        assert 66 in found.ids
        assert 65 in found.ids


@pytest.mark.parametrize("context", [512, 2048])
def test_F5_cuts_move_rarely_while_text_is_typed(context: int) -> None:
    tokenizer = tokenizer_of()
    place = Place(tuple(Snippet("x" * 40, f"{i}.py") for i in range(60)))
    room = PlaceRoom.of(context, 16)
    starts = set()
    for typed in range(context):
        ids = lay_out([65] * typed, [66] * 20, place, tokenizer, room).ids
        starts.add(ids[: ids.index(65)] if 65 in ids else None)
    assert len(starts) <= 10
    # A cut prefix loses a quarter of its room at once.
    lengths = [
        lay_out([*range(100, 200)] * 40, [66] * 20, Place(), tokenizer, room).ids[1:3]
        for _ in range(2)
    ]
    assert lengths[0] == lengths[1]


def test_F5_a_warm_up_is_cut_as_the_request_after_it() -> None:
    assert PlaceRoom.of(4096, 0) == PlaceRoom.of(4096, 128) == PlaceRoom.of(4096, None)
    assert PlaceRoom.of(4096, 1000).reserved == 1000
    assert PlaceRoom.of(4096, 10**9).reserved == 2048
