"""Tiny vocabularies of every kind that llama.cpp knows, for files of ``tiny_gguf``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import gguf

NORMAL, UNKNOWN, CONTROL, USER, BYTE = (
    gguf.TokenType.NORMAL, gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL,
    gguf.TokenType.USER_DEFINED, gguf.TokenType.BYTE,
)  # fmt: skip

PRE_TOKENIZERS = (
    "default", "llama-bpe", "minicpm5", "deepseek-llm", "deepseek-coder", "deepseek-v3",
    "spark2_5", "youtu", "falcon", "starcoder", "gpt-2", "jais-2", "qwen2", "qwen35", "viking",
    "tekken", "bloom", "exaone-moe", "chameleon", "gpt-4o", "granite-embed-multi-97m", "tiny_aya",
    "superbpe", "bailingmoe", "seed-coder", "kimi-k2", "ufakzeka", "afmoe", "laguna", "whitespace",
    "sarvam-moe", "gemma4",
)  # fmt: skip
"""One name for each way that llama.cpp cuts text before byte pairs are merged."""

RAW_TEXT = {"gemma4", "sarvam-moe", "whitespace"}
"""Those whose tokens are text itself, not stand-ins for bytes."""

WORDS = ("hello", "world", "the", "a", "def", "é", "中", "in", "ing")
"""Words that tiny vocabularies have a token for, beside single characters."""


class Vocabulary(NamedTuple):
    """What a file says of its tokens; ``more`` has keys after ``tokenizer.ggml.``."""

    model: str
    tokens: Sequence[str]
    types: Sequence[gguf.TokenType]
    pre: str = "default"
    scores: Sequence[float] | None = None
    merges: Sequence[str] | None = None
    more: Mapping[str, bool | int | bytes] = {}

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Put it into a file's metadata."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.types))
        if self.scores is not None:
            writer.add_token_scores(list(self.scores))
        if self.merges is not None:
            writer.add_token_merges(list(self.merges))
        for key, value in self.more.items():
            if isinstance(value, bool):
                writer.add_bool(f"tokenizer.ggml.{key}", value)
            elif isinstance(value, int):
                writer.add_uint32(f"tokenizer.ggml.{key}", value)


def _bytes() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def _spaced() -> list[str]:
    """Characters and words, each also as it starts a word, by how they are merged."""
    characters = ["▁", *map(chr, range(33, 127)), "\n", "é", "中"]
    steps = [word[:end] for word in WORDS for end in range(2, len(word) + 1)]
    words = [f"▁{step}" for step in (*characters[1:], *steps)]
    return list(dict.fromkeys([*characters, *words, *steps, "▁▁"]))


def spm(*, byte_tokens: bool = True, unknown: bool = True, infill: bool = False) -> Vocabulary:
    """As Llama 2 has it: a space in front of text, and (or not) a token for each byte."""
    names = ["<unk>", "<s>", "</s>", "[INST]"]
    types = [UNKNOWN if unknown else CONTROL, CONTROL, CONTROL, CONTROL]
    if not unknown:
        names[0] = "<none>"
    if infill:
        names += ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]
        types += [CONTROL] * 4
    raw = _bytes() if byte_tokens else []
    plain = [word for word in _spaced() if not byte_tokens or word != "\n"]
    tokens = [*names, *raw, *plain, "<user>"]
    return Vocabulary(
        "llama",
        tokens,
        [*types, *[BYTE] * len(raw), *[NORMAL] * len(plain), USER],
        scores=[-float(i) if token.strip("▁<>") else -1e6 for i, token in enumerate(tokens)],
        more={"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_bos_token": True},
    )


def ugm() -> Vocabulary:
    """As T5 has it: a space in front, spaces in a row are one, an unknown token, no bytes."""
    plain = [word for word in _spaced() if word not in {"\n", "▁▁"}]
    tokens = ["<pad>", "</s>", "<unk>", *plain, "<user>"]
    return Vocabulary(
        "t5",
        tokens,
        [CONTROL, CONTROL, UNKNOWN, *[NORMAL] * len(plain), USER],
        scores=[0.0] * 3 + [-10.0 / len(word.encode()) for word in plain] + [0.0],
        more={
            "eos_token_id": 1, "unknown_token_id": 2, "padding_token_id": 0,
            "add_space_prefix": True, "remove_extra_whitespaces": True, "add_eos_token": False,
        },
    )  # fmt: skip


def wpm() -> Vocabulary:
    """As BERT has it: words in lower case without their spaces and accents."""
    words = [word for word in _spaced() if word not in {"\n", "▁", "▁▁", "é", "▁é"}]
    plain = [word for word in words if word == word.lower()]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return Vocabulary(
        "bert",
        [*special, *plain],
        [*[CONTROL] * 5, *[NORMAL] * len(plain)],
        more={
            "bos_token_id": 2, "cls_token_id": 2, "seperator_token_id": 3, "unknown_token_id": 1,
            "padding_token_id": 0, "mask_token_id": 4,
        },
    )  # fmt: skip


def rwkv(*, every_byte: bool = True) -> Vocabulary:
    """As RWKV has it: bytes and words, the longest that fits."""
    raw = [f"\\x{byte:02x}" for byte in range(256) if every_byte or chr(byte).isascii()]
    words = [word for word in WORDS if word.isascii() and len(word) > 1]
    spaced = [f" {word}" for word in words]
    part = [] if every_byte else ["中文"]
    tokens = ["<s>", *raw, *words, *spaced, *part]
    return Vocabulary(
        "rwkv",
        tokens,
        [NORMAL] * len(tokens),
        more={"bos_token_id": 0, "eos_token_id": 0, "add_bos_token": False},
    )


def plamo2() -> Vocabulary:
    """As PLaMo 2 has it: a token for each byte, words by their scores."""
    names = ["<|plamo:unk|>", "<|plamo:bos|>", "<|plamo:eos|>", "<|plamo:pad|>"]
    words = [*map(chr, range(32, 127)), *WORDS[:4], *[f" {word}" for word in WORDS[:4]]]
    words = list(dict.fromkeys(words))
    return Vocabulary(
        "plamo2",
        [*names, *_bytes(), *words],
        [*[CONTROL] * 4, *[BYTE] * 256, *[NORMAL] * len(words)],
        scores=[0.0] * 260 + [-1.0 for _ in words],
        more={"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_bos_token": False},
    )


def byte_pairs(pre: str) -> Vocabulary:
    """As most have it: GPT-2's 256 stand-ins for bytes, or the bytes' names where ``pre`` says."""
    model = "gemma4" if pre == "gemma4" else "gpt2"
    raw_text = pre in RAW_TEXT
    letters = [*map(chr, range(33, 127)), "▁", "é", "中"] if raw_text else byte_alphabet()
    space = "▁" if raw_text else "Ġ"
    merges = ["t h", "th e", f"{space} the", "i n", "in g", "h e", "l l", "he ll", "hell o", "a a",
              f"{space} a", "0 1"]  # fmt: skip
    merged = list(dict.fromkeys(merge.replace(" ", "") for merge in merges))
    names = ["<|endoftext|>", "<s>", "<|im_end|>"]
    raw = _bytes() if raw_text else []
    tokens = [*names, *raw, *letters, *merged, "<user>"]
    types = [*[CONTROL] * 3, *[BYTE] * len(raw), *[NORMAL] * len([*letters, *merged]), USER]
    more = {"bos_token_id": 1, "eos_token_id": 0, "add_bos_token": False}
    return Vocabulary(model, tokens, types, pre=pre, merges=merges, more=more)


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins, by byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    table |= {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return [table[byte] for byte in range(256)]
