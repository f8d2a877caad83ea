"""Entries of log-probabilities: tokens with one text stay apart, and the chosen one has its own."""

from __future__ import annotations

import math
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.completion.logprobs import LogprobsBuilder
from afterword.completion.prompt_text import VocabView
from afterword.core.job import NO_TOKEN
from afterword.core.token_text import bytes_text, token_text
from afterword.core.wire import LOWEST

PIECES = (b"a", b"a", b"a", b" a", b"\xff", b"\xff", b"\xff", b"b", "é".encode())
"""Some vocabularies have a text twice, and a space in front may be the tokenizer's own."""
VOCAB = VocabView(PIECES, frozenset(), space_after=frozenset())
IDS = st.integers(0, len(PIECES) - 1)


@given(
    token=IDS,
    tops=st.lists(IDS, unique=True),
    absent=st.integers(0, 2),
    fresh=st.booleans(),
    logprob=st.sampled_from((-0.5, -math.inf)),
)
def test_L3_every_likely_token_has_an_entry(
    token: int, tops: list[int], absent: int, fresh: bool, logprob: float
) -> None:
    """N or N + 1 entries, likeliest first, whatever the texts of the tokens are (L3, L7)."""
    values = [logprob if i == token else -1.0 - at for at, i in enumerate(tops)]
    builder = LogprobsBuilder(VOCAB)
    # An id that was asked for, and is among the likeliest, is not there again.
    ids = tops + [NO_TOKEN] * absent
    builder.add(token, logprob, ids, values + [math.nan] * absent, 3, fresh=fresh)
    entries = builder.take()
    (text,), (value,), (top,) = entries.tokens, entries.token_logprobs, entries.top_logprobs
    assert top is not None
    assert entries.text_offset == [3]
    assert text == token_text(VOCAB.piece(token, fresh=fresh))
    assert top[text] == value == max(logprob, LOWEST)
    shown = tops if token in tops else [*tops, token]
    expected = [max(v, LOWEST) for v in ([*values, logprob] if token not in tops else values)]
    assert list(top.values()) == expected
    for i, key in zip(shown, top, strict=True):
        names = token_text(VOCAB.piece(i, fresh=fresh)), bytes_text(PIECES[i])
        # No known vocabulary has three tokens of the same bytes.
        assert key.rstrip("\u200b") in names


@given(tokens=st.lists(IDS), as_ids=st.booleans())
def test_S9_single_entries_are_those_of_all(tokens: list[int], as_ids: bool) -> None:
    whole, single = (LogprobsBuilder(VOCAB, as_ids=as_ids) for _ in range(2))
    for builder in (whole, single):
        builder.add_first(0, 0, fresh=True)
        for at, token in enumerate(tokens):
            builder.add(token, -float(at), [token, 7], [-float(at), -9.0], at, fresh=False)
        assert len(builder) == len(tokens) + 1
    entries, parts = whole.take(), list(single.take_each())
    assert all(len(part.tokens) == 1 for part in parts)
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert getattr(entries, name) == [*chain(*(getattr(part, name) for part in parts))]
    if as_ids:
        assert entries.tokens == [f"token_id:{token}" for token in (0, *tokens)]
    # What was taken is not given again.
    assert not whole.take().tokens
    assert not list(single.take_each())


def test_L3_an_id_that_stands_for_another_is_shown_as_the_other() -> None:
    """The end of a choice behind another server, which is among the likeliest tokens itself."""
    vocab = VocabView((*PIECES, b"b"), frozenset(), aliases={len(PIECES): 7})
    for as_ids, names in ((False, ["b", "a"]), (True, ["token_id:7", "token_id:0"])):
        builder = LogprobsBuilder(vocab, as_ids=as_ids)
        builder.add(len(PIECES), -0.5, [7, 0], [-0.5, -2.0], 0, fresh=False)
        entries = builder.take()
        assert entries.tokens == names[:1]
        assert entries.top_logprobs == [dict(zip(names, (-0.5, -2.0), strict=True))]


@pytest.mark.parametrize(
    ("token", "tops", "names"),
    [
        (7, [0, 7], ["a", "b"]),
        (0, [0, 1, 2], ["a", "bytes:\\x61", "bytes:\\x61\u200b"]),
        # The chosen token has its own text, although another one of that text is likelier.
        (1, [0, 1], ["bytes:\\x61", "a"]),
        (5, [4, 5], ["bytes:\\xff\u200b", "bytes:\\xff"]),
        (5, [4], ["bytes:\\xff\u200b", "bytes:\\xff"]),
    ],
)
def test_L4_of_tokens_with_one_text_all_but_one_are_bytes(
    token: int, tops: list[int], names: list[str]
) -> None:
    builder = LogprobsBuilder(VOCAB)
    values = [-1.0 - at for at in range(len(tops))]
    builder.add(token, -1.0 - (len(names) - 1), tops, values, 0, fresh=False)
    (top,) = builder.take().top_logprobs
    assert top is not None
    assert list(top) == names
