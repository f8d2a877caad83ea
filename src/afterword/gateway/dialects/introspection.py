"""Introspection of a vocabulary: the bytes of every token of an upstream that reports only text.

``/detokenize`` gives the text of a list of ids; bytes that form no character become U+FFFD.
A question lists many ids with a separator between them. A token whose text is broken is asked for
again between neighbours of known bytes, until they complete a character together: without the
neighbours' bytes, the text then gives the token's own bytes.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Protocol

from afterword.core.protocols import InfillTokens
from afterword.core.wire import Vocabulary
from afterword.gateway.failures import ClientsFault, Refused, StreamBroke

Spell = Callable[[Sequence[int]], Awaitable[str]]

_BROKEN = "\ufffd"
_SEPARATORS = ("ZqXj#Zq", "QxvK%Qx", "JkZw~Jk")
_BLOCK = 16384
_MOST_IDS = 1 << 20
_LONE = ("\x80", "\x90", "\ue000", "\ue800", "\ue820", "\U000f0000")
"""Characters without a token in any vocabulary: tokenizers give them byte by byte."""
_HEADS = (b"", b"\xc2", b"\xee", b"\xf3")
_TAILS = (b"", b"\x80", b"\xa0", b"\x90", b"\x80\x80", b"\xa0\x80", b"\x90\x80", b"\x90\x80\x80",
          b"\x80\x80\x80")  # fmt: skip
_NEVER = (0xC0, 0xC1, *range(0xF5, 0x100))
"""Bytes that UTF-8 never contains, so that no neighbours complete them."""
_CLEANED = (".", "?", "!", ",", "'", "n't")
"""Texts before which some decoders remove a space, although it belongs to the token."""

_ENDS = ("<|endoftext|>", "<|im_end|>", "</s>", "<eos>", "<|eot_id|>", "<|end_of_text|>",
         "<end_of_turn>", "<|end|>", "<|return|>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
         "<|eom_id|>")  # fmt: skip
_DOCUMENT_START = "<|endoftext|>"
_INFILL = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "psm"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "psm"),
    (
        "<\uff5cfim\u2581begin\uff5c>",
        "<\uff5cfim\u2581hole\uff5c>",
        "<\uff5cfim\u2581end\uff5c>",
        "psm",
    ),
    ("<PRE>", "<SUF>", "<MID>", "psm"),
    ("[PREFIX]", "[SUFFIX]", None, "spm"),
)
"""Fill-in-the-middle tokens by family (prefix, suffix, middle), and its order of training."""
_SPECIAL = re.compile(
    rb"<\|[^<>]+\|>|<\xef\xbd\x9c[^<>]+\xef\xbd\x9c>|\[/?[A-Z_]{2,}\]"
    rb"|</?(?:s|unk|pad|bos|eos|mask|sep|cls|(?:start|end)_of_\w+|fim_\w+|unused\d+)>"
)
"""The usual names of special tokens. A server says of no token that it is special."""
_REPOSITORY = ("<|repo_name|>", "<|fim_repo|>", "<repo_name>", "<reponame>")
_FILE = ("<|file_sep|>", "<file_sep>", "<filename>")
"""What begins the names of repositories and files; source: llama.cpp and StarCoder."""
_INFILL_ENDS = ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<fim_pad>", "<EOT>")


class Encode(Protocol):
    """Text to ids; ``add_special`` adds the ids that the model puts before a document."""

    async def __call__(self, text: str, *, add_special: bool = False) -> list[int]:
        """Returns the ids of a text; parses names of special tokens."""


async def introspect_vocabulary(
    spell: Spell, encode: Encode, *, size: int | None = None
) -> Vocabulary:
    """Returns the vocabulary behind ``spell`` (ids to text) and ``encode``.

    ``size`` is its number of tokens; None finds the last id with a text. Raises
    ``UpstreamFailure`` if the upstream does not answer, if its answers do not fit each other, or if
    its tokens cannot be told apart.
    """
    if size is not None and not 0 < size <= _MOST_IDS:
        raise StreamBroke(f"its vocabulary has a size of {size}")
    try:
        return await _vocabulary(spell, encode, size)
    except (LookupError, ValueError):
        raise StreamBroke("its tokenizer gives ids that its vocabulary does not have") from None


async def _vocabulary(spell: Spell, encode: Encode, size: int | None) -> Vocabulary:
    pieces = await _pieces(spell, encode, size)
    names = {piece: i for i, piece in enumerate(pieces)}

    async def special(name: str | None) -> int | None:
        if name is None or name.encode() not in names:
            return None
        ids = await encode(name)
        return ids[-1] if pieces[ids[-1]] == name.encode() else None

    ends = [i for i in [await special(name) for name in _ENDS] if i is not None]
    bare, whole = await encode("a"), await encode("a", add_special=True)
    added = whole[: len(whole) - len(bare)] if whole[-len(bare) :] == bare else []
    bos = added[0] if added else None
    infill = await _infill(special)
    named = [infill.prefix_id, infill.suffix_id, infill.middle_id] if infill else []
    starts = (bos, await special(_DOCUMENT_START), ends[0] if ends else None, 0)
    roles = {"bos": bos, "eos": ends[0] if ends else None}
    found = (*ends, bos, *named, *(infill.end_ids if infill else ()))
    special_ids = {i for i in found if i is not None}
    special_ids.update(i for i, piece in enumerate(pieces) if _SPECIAL.fullmatch(piece))
    return Vocabulary(
        pieces=pieces,
        special_ids=sorted(special_ids),
        end_ids=ends,
        document_start_id=next(i for i in starts if i is not None),
        bos_id=bos,
        roles={role: i for role, i in roles.items() if i is not None},
        infill=infill,
        # Servers differ in the space after special tokens, so none is assumed.
        space_after=[] if bare and pieces[bare[0]].startswith(b" ") else None,
    )


async def _infill(special: Callable[[str | None], Awaitable[int | None]]) -> InfillTokens | None:
    for prefix, suffix, middle, order in _INFILL:
        ids = [await special(name) for name in (prefix, suffix, middle)]
        if ids[0] is None or ids[1] is None or (middle is not None and ids[2] is None):
            continue
        ends = [await special(name) for name in _INFILL_ENDS]
        repositories = [await special(name) for name in _REPOSITORY]
        files = [await special(name) for name in _FILE]
        # A marker begins another infill, so it ends a middle.
        after = {i for i in (*ids, *ends) if i is not None}
        return InfillTokens(
            prefix_id=ids[0],
            suffix_id=ids[1],
            middle_id=ids[2],
            order="psm" if order == "psm" else "spm",
            end_ids=tuple(sorted(after)),
            repository_id=next((i for i in repositories if i is not None), None),
            file_id=next((i for i in files if i is not None), None),
        )
    return None


async def _pieces(spell: Spell, encode: Encode, size: int | None) -> list[bytes]:
    for text in _SEPARATORS:
        separated = await _Separated.of(spell, await encode(text))
        texts = await _texts(separated, size)
        if texts is not None:
            break
    else:
        raise StreamBroke("its tokens cannot be told apart: every separator occurs in a token")
    pieces = [text.encode() for text in texts]
    broken = [i for i, text in enumerate(texts) if _BROKEN in text]
    neighbours = await _neighbours(separated, encode) if broken else {}
    mended = await _mended(separated, broken, neighbours)
    hopeless = [i for i in broken if i not in mended and texts[i] == _BROKEN]
    if len(hopeless) == len(_NEVER):
        # These are the bytes that UTF-8 never contains; vocabularies list bytes in order.
        mended |= {i: bytes([byte]) for i, byte in zip(hopeless, _NEVER, strict=True)}
    for i, piece in mended.items():
        pieces[i] = piece
    for i, piece in (await _spaced(encode, texts)).items():
        pieces[i] = piece
    return pieces


class _Separated:
    """Asks for the texts of many lists of ids in one question."""

    def __init__(self, spell: Spell, ids: Sequence[int], first: str, between: str) -> None:
        self._spell = spell
        self._ids = list(ids)
        self._first = first
        self._between = between

    @staticmethod
    async def of(spell: Spell, ids: Sequence[int]) -> _Separated:
        """Learn a separator's text. At the start of a text it may lack the space of later ones."""
        first = await spell(ids)
        twice = await spell([*ids, *ids])
        return _Separated(spell, ids, first, twice[len(first) :])

    async def texts(self, lists: Sequence[Sequence[int]]) -> list[str] | None:
        """Returns one text for each list; None if the separator also occurs inside a text."""
        asked = list(self._ids)
        for ids in lists:
            asked += ids
            asked += self._ids
        text = await self._spell(asked)
        if not text.startswith(self._first):
            return None
        parts = text[len(self._first) :].split(self._between)
        return parts[:-1] if len(parts) == len(lists) + 1 and not parts[-1] else None


async def _texts(separated: _Separated, size: int | None) -> list[str] | None:
    texts: list[str] = []
    while len(texts) < (_MOST_IDS if size is None else size):
        start = len(texts)
        count = _BLOCK if size is None else min(_BLOCK, size - start)
        try:
            block = await separated.texts([[i] for i in range(start, start + count)])
        except (ClientsFault, Refused):
            if size is not None or not start:
                raise
            break  # the server refuses ids beyond its vocabulary
        if block is None:
            return None
        texts += block
        if size is None and not any(block):
            break
    if size is None:
        while texts and not texts[-1]:
            texts.pop()
    return texts


async def _neighbours(separated: _Separated, encode: Encode) -> Mapping[int, int]:
    """Returns the ids of single bytes, learned from characters that are given byte by byte."""
    found: dict[int, int] = {}
    for character in _LONE:
        raw = character.encode()
        ids = (await encode(f"a{character}"))[-len(raw) :]
        texts = await separated.texts([ids, *[[i] for i in ids]])
        if texts and texts[0] == character and all(text == _BROKEN for text in texts[1:]):
            found.update(zip(raw, ids, strict=True))
    return found


async def _mended(
    separated: _Separated, broken: Sequence[int], neighbours: Mapping[int, int]
) -> dict[int, bytes]:
    """Returns the bytes of the broken tokens that some neighbours complete."""
    mended: dict[int, bytes] = {}
    left = list(broken)
    for head, tail in product(_HEADS, _TAILS):
        if not left or not (head or tail) or not neighbours.keys() >= {*head, *tail}:
            continue
        before, after = [neighbours[b] for b in head], [neighbours[b] for b in tail]
        for at in range(0, len(left), _BLOCK):
            block = left[at : at + _BLOCK]
            texts = await separated.texts([[*before, i, *after] for i in block])
            for i, text in zip(block, texts or (), strict=bool(texts)):
                if _BROKEN not in text:
                    raw = text.encode()
                    mended[i] = raw[len(head) : len(raw) - len(tail)]
        left = [i for i in left if i not in mended]
    return mended


async def _spaced(encode: Encode, texts: Sequence[str]) -> Mapping[int, bytes]:
    """Returns the tokens whose space a decoder removes: their text equals that of another token."""
    spaced: dict[int, bytes] = {}
    for text in _twice(texts):
        ids = await encode(f"a {text}")
        if ids and texts[ids[-1]] == text and (await encode(f"a{text}"))[-1:] != ids[-1:]:
            spaced[ids[-1]] = f" {text}".encode()
    return spaced


def _twice(texts: Sequence[str]) -> Iterator[str]:
    seen: set[str] = set()
    given: set[str] = set()
    for text in texts:
        if text.startswith(_CLEANED):
            if text in seen and text not in given:
                given.add(text)
                yield text
            seen.add(text)
