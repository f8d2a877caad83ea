"""Declares small vocabularies of three kinds in GGUF files."""

from __future__ import annotations

import itertools
import string

import gguf

from support.tiny_vocab import byte_alphabet
from zoo.architectures import VocabularyKind

SIZE = 512
"""Tokens of each vocabulary."""
_LETTERS = string.ascii_lowercase
_WORDS = ["".join(pair) for pair in itertools.product("aeiou", _LETTERS)]


def add_vocabulary(writer: gguf.GGUFWriter, kind: VocabularyKind) -> None:
    """Declare a vocabulary of ``SIZE`` tokens that can spell any text."""
    {"bpe": _add_bpe, "spm": _add_spm, "rwkv": _add_rwkv}[kind](writer)


def _add_bpe(writer: gguf.GGUFWriter) -> None:
    special = ["<|endoftext|>"]
    tokens = [*special, *byte_alphabet(), *_WORDS]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_merges([" ".join(word) for word in _WORDS])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(value=False)
    _add_tokens(writer, tokens, len(special))


def _add_spm(writer: gguf.GGUFWriter) -> None:
    special = ["<unk>", "<s>", "</s>"]
    by_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    plain = ["\u2581", *string.printable[:94], *_WORDS]
    tokens = [*special, *by_byte, *plain]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(place) for place in range(SIZE)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(value=True)
    _add_tokens(writer, tokens, len(special), by_byte=len(by_byte))


def _add_rwkv(writer: gguf.GGUFWriter) -> None:
    tokens = ["<s>", *(f"\\x{byte:02x}" for byte in range(1, 256)), *_WORDS]
    writer.add_tokenizer_model("rwkv")
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(value=False)
    _add_tokens(writer, tokens, 0)


def _add_tokens(
    writer: gguf.GGUFWriter, tokens: list[str], special: int, *, by_byte: int = 0
) -> None:
    """Add special tokens, then bytes, then plain tokens, then fillers up to ``SIZE``."""
    plain = len(tokens) - special - by_byte
    fillers = [f"<filler {number}>" for number in range(SIZE - len(tokens))]
    writer.add_vocab_size(SIZE)
    writer.add_token_list([*tokens, *fillers])
    writer.add_token_types(
        [gguf.TokenType.CONTROL] * special
        + [gguf.TokenType.BYTE] * by_byte
        + [gguf.TokenType.NORMAL] * (plain + len(fillers))
    )
