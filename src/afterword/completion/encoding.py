"""Texts of a request as token ids, and ids as a model's vocabulary has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from afterword.completion.fields import out_of_range
from afterword.completion.id_fields import Prompt, slices
from afterword.core.errors import InvalidRequest, UnspellableText
from afterword.core.protocols import Tokenizer


def least_tokens(prompt: Prompt, tokenizer: Tokenizer) -> int:
    """Returns a number of tokens that every tokenisation of the prompt reaches."""
    if not isinstance(prompt, str):
        return len(prompt)
    # Characters first, because encoding a long text takes milliseconds.
    size = len(prompt) if prompt.isascii() else len(prompt.encode())
    return math.ceil(size / tokenizer.max_piece_bytes)


def encode(
    name: str,
    text: str,
    tokenizer: Tokenizer,
    *,
    parse_special: bool = True,
    continues: bool = False,
) -> Sequence[int]:
    """Returns the ids of a field's text. Raises ``InvalidRequest`` if there are none for it."""
    try:
        return tokenizer.encode(text, parse_special=parse_special, continues=continues)
    except UnspellableText as error:
        raise InvalidRequest(
            f"Invalid value for '{name}': this model's vocabulary has no tokens for some of its "
            "characters, and none for unknown ones.",
            param=name,
            code="invalid_value",
        ) from error


def known_ids(name: str, ids: Sequence[int] | None, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the ids of a field; none for None. Raises ``InvalidRequest`` for unknown ones."""
    if not ids:
        return ()
    largest, vocabulary = max(map(max, slices(ids))), len(tokenizer.pieces)
    if largest >= vocabulary:
        raise out_of_range(name, largest, f"token ids below the vocabulary's size of {vocabulary}")
    return tuple(ids)
