"""The tokens that begin and continue the breakers of the DRY penalty."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from afterword.completion.tokens import encode
from afterword.core.protocols import Tokenizer

_FIELD = "dry_sequence_breakers"
_MOST_TAIL_TOKENS = 20
Tail = tuple[int, ...]


def breaker_tokens(texts: tuple[str, ...], tokenizer: Tokenizer) -> Mapping[int, tuple[Tail, ...]]:
    """Returns the tokens with which a breaker can begin, each with what can follow it.

    A token that contains a breaker is followed by ``()``. A token whose last bytes begin a breaker
    is followed by the tokens of the rest. Source: llama.cpp's DRY sampler. Searching a large
    vocabulary takes tens of milliseconds, so the latest results are kept. Raises
    ``InvalidRequest`` if the vocabulary has no tokens for a breaker.
    """
    kept: Any = tokenizer
    return _found(texts, kept)


@lru_cache(maxsize=8)
def _found(texts: tuple[str, ...], tokenizer: Any) -> Mapping[int, tuple[Tail, ...]]:  # noqa: ANN401 - protocols do not say that they are hashable
    found: dict[int, dict[Tail, None]] = {}
    for text in texts:
        wanted = text.encode()
        rests = list(_rests(text, tokenizer))
        for token, piece in enumerate(tokenizer.pieces):
            if wanted in piece:
                found.setdefault(token, {})[()] = None
                continue
            for begun, tail in rests:
                if piece.endswith(begun):
                    found.setdefault(token, {})[tail] = None
    return {token: tuple(tails) for token, tails in found.items()}


def _rests(text: str, tokenizer: Tokenizer) -> Iterator[tuple[bytes, Tail]]:
    """Yields each proper beginning of a breaker, and the tokens of the rest."""
    for at in range(1, len(text)):
        tail = encode(_FIELD, text[at:], tokenizer, parse_special=False, continues=True)
        yield text[:at].encode(), tuple(tail[:_MOST_TAIL_TOKENS])
