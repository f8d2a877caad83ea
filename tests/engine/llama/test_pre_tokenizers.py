"""Text is cut before byte pairs are merged as std::regex cuts it, and no text is too long.

The digests were made with an unchanged library, except that of "whitespace", where it ends the
process. They are digests of the ids of random texts. The vocabularies have all words of up to
three letters over a small alphabet, so that most cuts change the ids.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import gguf
import pytest

from afterword.engine.llama import binding
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.vocab import LlamaTokenizer
from support.tiny_gguf import Shape, make_gguf
from support.tiny_vocab import PRE_TOKENIZERS, RAW_TEXT, Vocabulary, byte_alphabet, byte_pairs

SHAPE = Shape(embedding=32, heads=1, kv_heads=1)
LETTERS = "aA1 \n'.é"
PARTS = [
    *LETTERS, *LETTERS, "s", "ll", "'re", "123", "  ", "\t", "\r\n", "/", "!?", "$", "<", "_", "[",
    "\u0301", "\u00a0", "\u2003", "中", "文字", "あ", "가", "…", "\u2019", "。", "😀", "\u200d",
    "א", "ก", "ั", "ǅ", "ʰ", "½", "\u0661", "\x00", "\x7f", "<sentinel:12>", "IMGIMGABZ", "\ue000",
]  # fmt: skip
TEXTS = 300
MOST_PARTS = 24

DIGESTS = {
    "default": "5f087c840bf2", "llama-bpe": "fa4444e57237", "minicpm5": "833254c1653f",
    "deepseek-llm": "40b098f1937d", "deepseek-coder": "59979a103e90", "deepseek-v3": "8359c7b3258f",
    "spark2_5": "45bff7c7df75", "youtu": "fe2723392a09", "falcon": "5f80060cf0c8",
    "starcoder": "2e5c070477a7", "gpt-2": "67734e4fbc4a", "jais-2": "af79f29890d1",
    "qwen2": "af7947e7ddb2", "qwen35": "af7947e7ddb2", "viking": "f621d30bfd7f",
    "tekken": "b37e69d93b33", "bloom": "6ae3ad8ffb4e", "exaone-moe": "eacea00d0005",
    "chameleon": "bd19356bcc7b", "gpt-4o": "8e2d37beed6b",
    "granite-embed-multi-97m": "44782e64d0cb",
    "tiny_aya": "1578b2da9260", "superbpe": "4957f2f20d39", "bailingmoe": "af7947e7ddb2",
    "seed-coder": "6e1122348539", "kimi-k2": "1578b2da9260", "ufakzeka": "af7947e7ddb2",
    "afmoe": "ce47e1869233", "laguna": "1a58ffed33b7", "whitespace": "7235f98e68b9",
    "sarvam-moe": "1d56f2216fe7", "gemma4": "1d56f2216fe7",
}  # fmt: skip

needs_guards = pytest.mark.skipif(
    not binding.CHANGES,
    reason="an unchanged library",
)


def _chained(pre: str) -> Vocabulary:
    """Returns a vocabulary in which every word of two or three letters is a token."""
    plain = byte_pairs(pre)
    spelled = [byte_alphabet()[byte] for byte in dict.fromkeys(LETTERS.encode())]
    letters = [*LETTERS.replace(" ", "▁").replace("\n", "")] if pre in RAW_TEXT else spelled
    words = ["".join(word) for size in (2, 3) for word in itertools.product(letters, repeat=size)]
    more = [word for word in words if word not in set(plain.tokens)]
    return plain._replace(
        tokens=[*plain.tokens, *more],
        types=[*plain.types, *[gguf.TokenType.NORMAL] * len(more)],
        merges=[f"{word[:-1]} {word[-1]}" for word in words],
    )


def _texts() -> list[str]:
    draw = random.Random(20261128)
    return ["".join(draw.choices(PARTS, k=draw.randint(1, MOST_PARTS))) for _ in range(TEXTS)]


def _digest(many: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(repr([list(ids) for ids in many]).encode()).hexdigest()[:12]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_texts_are_cut_as_std_regex_cuts_them(tmp_path: Path, pre: str) -> None:
    path = make_gguf(tmp_path / "tiny.gguf", shape=SHAPE, vocabulary=_chained(pre))
    model = LlamaModel(path)
    ids = [model.encode(text.encode(), parse_special=True) for text in _texts()]
    model.close()
    assert len({tuple(i) for i in ids}) > TEXTS // 2
    assert _digest(ids) == DIGESTS[pre]


RUNS = ("A", " ", "1", "中", "\u0301")
RUN_CHARACTERS = 120_000


@pytest.mark.slow
@needs_guards
@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_no_run_is_too_long(tmp_path: Path, pre: str) -> None:
    """std::regex recurses at every character, and ends the process at some tens of thousands."""
    path = make_gguf(tmp_path / "tiny.gguf", shape=SHAPE, vocabulary=byte_pairs(pre))
    model = LlamaModel(path)
    tokenizer = LlamaTokenizer(model)
    for unit in RUNS:
        text = f"x{unit * (RUN_CHARACTERS // len(unit))}1"
        ids = tokenizer.encode(text)
        assert len(ids) > 1
        # For "whitespace" the library spells letters as if they stood for bytes.
        if pre != "whitespace" or unit.isascii():
            assert b"".join(tokenizer.pieces[i] for i in ids).decode() == text
    model.close()
