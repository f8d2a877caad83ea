"""The tokens that begin and continue the breakers of the DRY penalty."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from afterword.completion.encoding import encode
from afterword.core.limits import MOST_TAIL_TOKENS
from afterword.core.protocols import Tokenizer

_FIELD = "dry_sequence_breakers"
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
    """Look at each piece once, however many breakers there are and however long."""
    wanted = [text.encode() for text in texts]
    begun: dict[bytes, list[tuple[int, Tail]]] = {}
    for at, text in enumerate(texts):
        for beginning, tail in _rests(text, tokenizer):
            begun.setdefault(beginning, []).append((at, tail))
    lengths = sorted({len(beginning) for beginning in begun})
    any_of_them = re.compile(b"|".join(map(re.escape, wanted)) or b"(?!)")
    found: dict[int, tuple[Tail, ...]] = {}
    for token, piece in enumerate(tokenizer.pieces):
        whole = any_of_them.search(piece) is not None
        inside = [at for at, breaker in enumerate(wanted) if breaker in piece] if whole else []
        tails: list[tuple[int, Tail]] = [(at, ()) for at in inside]
        for length in lengths:
            if length > len(piece):
                break
            ending = begun.get(piece[-length:], ())
            tails += [(at, tail) for at, tail in ending if at not in inside]
        if tails:
            # In the order of the breakers, and each once.
            tails.sort(key=_breaker)
            found[token] = tuple(dict.fromkeys(tail for _, tail in tails))
    return found


def _breaker(entry: tuple[int, Tail]) -> int:
    return entry[0]


def _rests(text: str, tokenizer: Tokenizer) -> Iterator[tuple[bytes, Tail]]:
    """Yields each proper beginning of a breaker, and the tokens of the rest."""
    for at in range(1, len(text)):
        tail = encode(_FIELD, text[at:], tokenizer, parse_special=False, continues=True)
        yield text[:at].encode(), tuple(tail[:MOST_TAIL_TOKENS])
