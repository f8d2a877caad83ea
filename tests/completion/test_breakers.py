"""The tokens of breakers, found in one pass, are those that a search for each breaker finds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from afterword.completion.breakers import Tail, breaker_tokens
from afterword.engine.toy import ToyTokenizer
from support.examples import examples

TOKENIZER = ToyTokenizer()


def naive(texts: tuple[str, ...]) -> dict[int, tuple[Tail, ...]]:
    """Each beginning of each breaker against each token, as llama.cpp does it."""
    found: dict[int, dict[Tail, None]] = {}
    for text in texts:
        for token, piece in enumerate(TOKENIZER.pieces):
            if text.encode() in piece:
                found.setdefault(token, {})[()] = None
                continue
            for at in range(1, len(text)):
                if piece.endswith(text[:at].encode()):
                    tail = TOKENIZER.encode(text[at:], parse_special=False, continues=True)
                    found.setdefault(token, {})[tuple(tail[:20])] = None
    return {token: tuple(tails) for token, tails in found.items()}


breakers = st.lists(st.text("abé 入<|", min_size=1, max_size=30), max_size=6, unique=True)


@given(breakers.map(tuple))
@settings(max_examples=examples(60), deadline=None)
def test_one_pass_finds_what_a_search_for_each_finds(texts: tuple[str, ...]) -> None:
    assert breaker_tokens(texts, TOKENIZER) == naive(texts)
