"""The indentation limit against llama-server's own loop, for any split of the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.completion.line_ends import IndentLimit
from completion.test_text import split

TEXTS = st.text(st.sampled_from(" \t\nab"), max_size=30)


def llama_server(text: str, least: int) -> str:
    """Process a token for each character, then empty ones, as ``process_token`` does."""
    generated = ""
    last_newline, has_newline = 0, False
    tokens = list(text) + [""] * (len(text) + 2)
    for token in tokens:
        generated += token
        if has_newline and least > 0:
            if last_newline > 0:
                at = last_newline
                while at < len(generated) and generated[at] in " \t":
                    at += 1
                if at < len(generated) and at - last_newline < least:
                    return generated[:at]
            found = generated.find("\n", last_newline)
            if found >= 0:
                last_newline = found + 1
        has_newline = has_newline or "\n" in token
    return generated


@given(text=TEXTS, least=st.integers(0, 4), cuts=st.lists(st.integers(0, 30)))
def test_F5_n_indent_is_llama_servers(text: str, least: int, cuts: list[int]) -> None:
    limit = IndentLimit(least)
    given_out = ""
    for part in split(text, cuts):
        assert isinstance(part, str)
        kept, over = limit.feed(part)
        given_out += kept
        if over:
            break
    assert given_out == llama_server(text, least)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\n    b\nc", "a\n    b\n"),
        ("a\n  b", "a\n  "),
        ("a\n\n    b", "a\n"),
        ("a\n\t\t\t\tb\n", "a\n\t\t\t\tb\n"),
        ("a\n    ", "a\n    "),
        ("first line has no limit", "first line has no limit"),
    ],
)
def test_F5_n_indent_by_example(text: str, kept: str) -> None:
    assert IndentLimit(4).feed(text)[0] == kept
