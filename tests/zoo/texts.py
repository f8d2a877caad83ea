"""Texts that break tokenizers: long runs of one kind of character, and rare characters."""

from __future__ import annotations

from collections.abc import Mapping

_LONG = 35_000

HOSTILE: Mapping[str, str] = {
    "letters": "A" * _LONG,
    "digits": "7" * _LONG,
    "spaces": " " * _LONG,
    "newlines": "\n" * _LONG,
    "punctuation": "!" * _LONG,
    "combining marks": "e" + "\u0301" * _LONG,
    "ideographs": "\u6f22" * _LONG,
    "emoji": "\U0001f600" * _LONG,
    "mixed": "h\u00e9llo \U0001f600 ",
    "joined": "\U0001f468\u200d\U0001f469\u200d" * 1000,
    "controls": "".join(map(chr, range(1, 32))),
    "noncharacters": "\ufffe\uffff\U0010ffff",
    "right to left": "\u202e\u05d0\u0627" * 1000,
    "apostrophes": "'s't're'" * 1000,
    "byte order mark": "\ufeffa",
    "special names": "<s></s><|endoftext|><unk>" * 100,
}
