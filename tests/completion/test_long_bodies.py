"""Token ids that are taken out of a long body are those that a parser finds there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.completion import long_bodies
from afterword.completion.long_bodies import lift_ids
from afterword.completion.request import decode
from afterword.core.errors import InvalidRequest
from afterword.core.limits import Limits

PAD = " " * 70_000
IDS = st.lists(st.integers(0, 10**6), max_size=40)
VALUES = IDS | st.lists(IDS, max_size=8) | st.lists(st.text(max_size=5) | IDS, max_size=4)


@given(VALUES, st.sampled_from([None, 1, 2]), st.sampled_from([1, 7, 1 << 15]))
def test_what_is_lifted_is_what_was_sent(value: list[Any], indent: int | None, size: int) -> None:
    before, long_bodies._SLICE_BYTES = long_bodies._SLICE_BYTES, size
    try:
        body = json.dumps({"model": "m", "prompt": value, "user": "[1]"}, indent=indent).encode()
        lifted = lift_ids(body, 2048)
    finally:
        long_bodies._SLICE_BYTES = before
    if lifted is not None:
        assert lifted.prompt == value
        assert json.loads(lifted.rest) == {"model": "m", "prompt": [], "user": "[1]"}


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [
        ("[1,2,3]", ((1, 2, 3),)),
        ("[ 1 , 2\n]", ((1, 2),)),
        ("[[1],[2,3]]", ((1,), (2, 3))),
        (" [ [ 1 ] , [ 2 ] ] ", ((1,), (2,))),
        (json.dumps([7] * 50_000), ((7,) * 50_000,)),
        (json.dumps([[7] * 30_000] * 3), ((7,) * 30_000,) * 3),
        ('["a",[1]]', None),
        ("[1,]", None),
        ("[,1]", None),
        ("[1,,2]", None),
        ("[[1],]", None),
        ("[[1]", None),
        ("[[1]]]", None),
        ("[[1][2]]", None),
        ("[[1],2]", None),
        ("[[1],[]]", None),
        ("[[1,[2]]]", None),
        ("[1,true]", None),
        ("[-1]", None),
        ("[01]", None),
        (json.dumps([7] * 50_000)[:-1] + ",]", None),
        ('[1],"prompt":[2]', None),
        ('[],"prompt":[[1]]', None),
        ('"x","stream_options":{"prompt":[1]}', None),
    ],
)
def test_a_long_body_means_what_a_short_one_means(prompt: str, meant: object) -> None:
    for pad in ("", PAD):
        body = f'{{"model":"m",{pad}"prompt":{prompt}}}'.encode()
        if meant is None:
            with pytest.raises(InvalidRequest):
                decode(body, Limits())
        else:
            assert decode(body, Limits()).prompt == meant


def test_names_in_strings_are_no_names() -> None:
    text = json.dumps('"prompt": [1]' + PAD)
    body = f'{{"model":"m","user":"prompt","prompt":{text}}}'.encode()
    assert decode(body, Limits()).prompt == (json.loads(text),)


def test_too_many_prompts_are_refused_at_the_first_too_many() -> None:
    body = b'{"model":"m","prompt":[' + b"[1]," * 100_000 + b"this is not read"
    with pytest.raises(InvalidRequest, match="at most 2048 prompts") as refused:
        decode(body, Limits())
    assert refused.value.param == "prompt"


def test_too_many_ids_are_refused_at_the_first_too_many() -> None:
    body = b'{"model":"m","prompt":[' + b"1," * (2**21 + 2**15) + b"1]}"
    with pytest.raises(InvalidRequest, match="at most 2097152 token ids in a prompt"):
        decode(body, Limits())


def test_values_of_unknown_fields_are_not_made() -> None:
    body = b'{"model":"m","prompt":"a","x":[' + b'{"a":1},' * 20_000 + b"0]}"
    with pytest.raises(InvalidRequest, match="Unrecognized request argument supplied: x"):
        decode(body, Limits())


def test_more_biases_than_any_vocabulary_has_are_not_made() -> None:
    biases = b",".join(b'"%d":1' % i for i in range(600_000))
    with pytest.raises(InvalidRequest, match="600000 token ids") as refused:
        decode(b'{"model":"m","logit_bias":{' + biases + b"}}", Limits())
    assert refused.value.param == "logit_bias"
