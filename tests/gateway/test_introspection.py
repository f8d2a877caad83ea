"""Introspected vocabularies equal the original ones."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from afterword.core.wire import Vocabulary
from afterword.engine.toy import ToyTokenizer
from afterword.gateway.dialects import introspection
from afterword.gateway.dialects.introspection import introspect_vocabulary
from afterword.gateway.failures import Refused, StreamBroke
from afterword.gateway.vocabulary import Pieces


class Told:
    """A server that gives only text. With ``cleans`` it removes spaces before points."""

    def __init__(
        self, pieces: Sequence[bytes], *, cleans: bool = False, refuses: bool = False
    ) -> None:
        self.pieces = list(pieces)
        self.cleans = cleans
        self.refuses = refuses
        self.asked = 0

    async def spell(self, ids: Sequence[int]) -> str:
        self.asked += 1
        if self.refuses and max(ids) >= len(self.pieces):
            raise Refused("no such token")
        raw = b"".join(self.pieces[i] for i in ids if i < len(self.pieces))
        text = raw.decode(errors="replace")
        return text.replace(" .", ".").replace(" ,", ",") if self.cleans else text

    async def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        ids, raw, at = [], text.encode(), 0
        longest = max(map(len, self.pieces))
        while at < len(raw):
            size = next(
                s for s in range(min(longest, len(raw) - at), 0, -1)
                if raw[at : at + s] in self.pieces
            )  # fmt: skip
            ids.append(self.pieces.index(raw[at : at + size]))
            at += size
        return ids

    async def introspect(self, size: int | None = None) -> Vocabulary:
        return await introspect_vocabulary(self.spell, self.encode, size=size)


BYTES = [bytes([i]) for i in range(256)]


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("size", [None, "told"])
async def test_every_piece_of_the_toy_that_utf8_can_have(
    refuses: bool, size: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last block ends exactly at the end of the vocabulary.
    pieces = [*ToyTokenizer().pieces, *[b"<%d>" % i for i in range(5)]]
    assert len(pieces) % 38 == 0
    monkeypatch.setattr(introspection, "_BLOCK", 38)
    told = Told(pieces, refuses=refuses)
    table = await told.introspect(len(pieces) if size else None)
    never = pieces.index(b"\xff\xfe")
    assert table.pieces[never] == "\ufffd\ufffd".encode()
    assert [p for i, p in enumerate(table.pieces) if i != never] == [
        p for i, p in enumerate(pieces) if i != never
    ]
    toy = ToyTokenizer()
    assert set(table.end_ids) == toy.end_ids
    assert table.infill == toy.infill
    assert table.document_start_id == toy.document_start_id


async def test_parts_of_characters_of_every_shape() -> None:
    whole = "é€中🙂\U0010ffff\ud7ff\u0800".encode()
    parts = sorted({whole[i : i + n] for i in range(len(whole)) for n in range(2, 7)})
    pieces = [*BYTES, *[part for part in parts if part not in BYTES]]
    table = await Told(pieces).introspect()
    wrong = [(got, piece) for got, piece in zip(table.pieces, pieces, strict=True) if got != piece]
    assert wrong == []


async def test_spaces_that_a_decoder_takes_away() -> None:
    pieces = [*BYTES, b" .", b" ,", b" a", b"..", b" .."]
    table = await Told(pieces, cleans=True).introspect()
    assert table.pieces == pieces


async def test_a_bos_whose_id_is_0_is_special() -> None:
    told = Told([b"<BOS_TOKEN>", *BYTES])

    async def encode(text: str, *, add_special: bool = False) -> list[int]:
        ids = await told.encode(text)
        return [0, *ids] if add_special else ids

    table = await introspect_vocabulary(told.spell, encode)
    assert (table.bos_id, table.special_ids) == (0, [0])


async def test_the_names_of_repositories_and_files() -> None:
    markers = [b"<|fim_%b|>" % role for role in (b"prefix", b"suffix", b"middle")]
    pieces = [*BYTES, *markers, b"<|repo_name|>", b"<|file_sep|>"]
    infill = (await Told(pieces).introspect()).infill
    assert infill is not None
    assert (infill.repository_id, infill.file_id) == (259, 260)
    without = (await Told(pieces[:-2]).introspect()).infill
    assert without is not None
    assert (without.repository_id, without.file_id) == (None, None)


async def test_a_separator_that_is_a_token() -> None:
    pieces = [*BYTES, b"xZqXj#Zqx"]
    assert (await Told(pieces).introspect()).pieces == pieces
    separators = [b"a%ba" % s.encode() for s in introspection._SEPARATORS]
    with pytest.raises(StreamBroke, match="cannot be told apart"):
        await Told([*BYTES, *separators]).introspect()


async def test_large_vocabularies_take_few_questions() -> None:
    pieces = [*BYTES, *[b" w%d" % i for i in range(40_000)]]
    told = Told(pieces)
    assert len((await told.introspect()).pieces) == len(pieces)
    assert told.asked < 60


@pytest.mark.parametrize(
    ("size", "said", "ids"),
    [
        (None, "", []), (None, "", [5]), (3, "abc", []), (3, "abc", [10**9]), (3, "abc", [-9]),
        (None, "\ufffd" * 9, [0]), (0, "a", [0]), (-1, "a", [0]), (10**12, "a", [0]),
    ],
)  # fmt: skip
async def test_answers_that_make_no_sense(size: int | None, said: str, ids: list[int]) -> None:
    """Whatever a server says of its tokenizer, it is a failure of that server."""

    async def spell(_: Sequence[int]) -> str:
        return said

    async def encode(text: str, *, add_special: bool = False) -> list[int]:
        return list(ids)

    with pytest.raises(StreamBroke):
        await introspect_vocabulary(spell, encode, size=size)


def test_text_of_tokens_that_were_not_sent_is_divided_at_once() -> None:
    """A search that tries every division would double its work with each token."""
    pieces = Pieces([b"a" * n for n in range(1, 17)] + [b"b", b""])
    for spelled in (b"a" * 200 + b"c", b"a" * 200, b"a" * 100_000):
        ids = pieces.spelling(spelled, 16)
        assert len(ids) == 16
        assert b"".join(pieces[i] for i in ids) == spelled
    # Long tokens first.
    assert pieces.spelling(b"aaab", 2) == [2, 16]
    assert pieces.spelling(b"aaab", 4) == [0, 0, 0, 16]
