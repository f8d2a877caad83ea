"""Long JSON that is parsed in slices is what a parser makes of it in one go."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afterword.completion import long_bodies
from afterword.completion.long_bodies import Unreadable, read_object
from afterword.completion.request import decode
from afterword.core.errors import InvalidRequest
from afterword.core.limits import Limits

PAD = " " * 70_000
DEEP = "values that are more than 200 levels deep"
IDS = st.lists(st.integers(0, 10**6), max_size=40)
NUMBERS = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=9)
VALUES = st.recursive(
    LEAVES | IDS | st.dictionaries(st.text(max_size=3), NUMBERS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(["prompt", "logit_bias", "stop", "é\n"]), VALUES)


@pytest.fixture(scope="module", params=[1, 7, 1 << 15], autouse=True)
def slice_bytes(request: pytest.FixtureRequest) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_bodies, "_SLICE_BYTES", request.param)
        yield


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(OBJECTS, st.sampled_from([None, 1, 2]), st.booleans())
def test_an_object_is_what_a_parser_makes_of_it(
    value: dict[str, Any], indent: int | None, ascii_only: bool
) -> None:
    body = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    assert read_object(body) == msgspec.json.decode(body)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(OBJECTS, st.data())
def test_what_a_parser_refuses_is_refused(value: dict[str, Any], data: st.DataObject) -> None:
    """One byte is changed, added or taken away."""
    body = bytearray(json.dumps(value, ensure_ascii=False).encode())
    at = data.draw(st.integers(0, len(body) - 1))
    new = data.draw(st.sampled_from([b"", b",", b'"', b"\\", b"]", b"}", b"0", b"\xff", b"\t"]))
    body[at : at + data.draw(st.integers(0, 1))] = new
    try:
        meant = msgspec.json.decode(bytes(body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        meant = None
    try:
        found = read_object(bytes(body))
    except Unreadable:
        assert not isinstance(meant, dict)
    except InvalidRequest as error:
        # The new byte made one name of two, or a number ten times as large.
        assert "Duplicate" in str(error) or (meant is None and "a number beyond" in str(error))  # noqa: PT017
    else:
        assert found == meant


@pytest.mark.parametrize(
    "text",
    [
        'a"b',
        "\\",
        "é入\U0001f600",
        "\u2028\x7f",
        "",
        '\\"' * 3000,
        "\U0001f600" * 600,
        "aé" * 40_000,
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_long_texts_are_whole(text: str, ascii_only: bool) -> None:
    body = json.dumps({"a": text, "b": [text, text]}, ensure_ascii=ascii_only).encode()
    assert read_object(body) == {"a": text, "b": [text, text]}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"1", b'"a"', b"{", b'{"a"', b'{"a":', b'{"a":1', b'{"a":1,', b'{"a":1,}',
        b'{"a":1}x', b'{"a":01}', b'{"a":+1}', b'{"a":.5}', b'{"a":NaN}', b'{"a":[1,]}',
        b'{"a":[,1]}', b'{"a":[1,,2]}', b'{"a":[1 2]}', b'{"a":["a" "b"]}', b'{"a":"\t"}',
        b'{"a":"\\x"}', b'{"a":"\\ud800"}', b'{"a":"\\ud83d\\u0041"}', b'{"a":"\\u12"}',
        b'{"a":"\xff"}', b'{"a":"\xc3"}', b'{"a":"\\', b'{"a":"\\"', b'{"a":{"1":NaN}}',
        b'{"a":{"1":1,}}', b'{"a":{1:1}}', b'{"a":' + b"[" * 200, b'{"a":0' + b"1" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(Unreadable):
        read_object(body)


@pytest.mark.parametrize(
    ("body", "param", "shown"),
    [
        (b'{"a":1,"b":2,"a":3}', "a", "a"),
        (b'{"a":{"5":1,"6":1,"5":2}}', "a", "a.5"),
        (b'{"a":{"x":"y","5":1,"x":2}}', "a", "a.x"),
        (b'{"a":[{"b":[{"c":1,"c":1}]}]}', "a", "a.c"),
        (b'{"a":{"\\u0035":1,"5":2}}', "a", "a.5"),
    ],
)
def test_repeated_keys_are_refused(body: bytes, param: str, shown: str) -> None:
    with pytest.raises(InvalidRequest, match=f"supplied: {shown}$") as refused:
        read_object(body)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [
        ("[1,2,3]", ((1, 2, 3),)),
        ("[[1],[2,3]]", ((1,), (2, 3))),
        (json.dumps([7] * 50_000), ((7,) * 50_000,)),
        (json.dumps([[7] * 30_000] * 3), ((7,) * 30_000,) * 3),
        (json.dumps('"prompt": [1]' + PAD), ('"prompt": [1]' + PAD,)),
        ('["a",[1]]', None),
        ("[[1,[2]]]", None),
        ("[1,true]", None),
        ("[-1]", None),
        ('[1],"prompt":[2]', None),
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


@pytest.mark.parametrize(
    ("unit", "most"),
    [(b"[1],", "65536 values"), (b"{},", "65536 values"), (b"1,", "2097152 numbers in an array")],
)
def test_what_no_request_needs_is_refused_at_the_first_too_many(unit: bytes, most: str) -> None:
    times = 2**21 + 2**15 if unit == b"1," else 2**17
    body = b'{"model":"m","prompt":[' + unit * times + b"this is not read"
    if unit == b"1,":
        body = body[:-16] + b"1]}"
    with pytest.raises(InvalidRequest, match=f"'prompt': the request has more than {most}") as no:
        decode(body, Limits())
    assert no.value.param == "prompt"


@pytest.mark.parametrize("pad", ["", PAD], ids=["short", "long"])
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("seed", "9" * 5000, "a number beyond 1.8e+308"),
        ("prompt", "[1," + "9" * 5000 + "]", "a number beyond 1.8e+308"),
        ("logit_bias", '{"5":-' + "9" * 5000 + "}", "a number beyond 1.8e+308"),
        ("prompt", "[" * 2000 + "]" * 2000, DEEP),
        ("metadata", '{"a":' * 2000 + "1" + "}" * 2000, DEEP),
    ],
)
def test_json_beyond_all_limits_is_refused_by_name(
    pad: str, field: str, value: str, said: str
) -> None:
    """It is JSON, so no answer says that it is none (H2, R19)."""
    with pytest.raises(InvalidRequest, match=f"'{field}': the request has {re.escape(said)}") as no:
        decode(f'{{"model":"m",{pad}"{field}":{value}}}'.encode(), Limits())
    assert no.value.param == field


@pytest.mark.parametrize(
    ("field", "value"),
    [("top_p", "0.{}"), ("prompt", "[1,2.{},3]"), ("prompt", "[[5],[1.{}]]"),
     ("logit_bias", '{{"5":1,"6":0.{}}}')],
)  # fmt: skip
@pytest.mark.parametrize("digit", ["9", "0"])
def test_a_number_as_long_as_a_short_body_is_refused_by_name(
    field: str, value: str, digit: str
) -> None:
    given = value.format(digit * 70_000)
    body = f'{{"model":"m","{field}":{given}}}'.encode()
    with pytest.raises(InvalidRequest, match="a number of 65536 or more characters") as refused:
        decode(body, Limits())
    assert refused.value.param == field


def test_long_white_space_among_numbers_is_no_long_number() -> None:
    body = b'{"model":"m","prompt":[1,' + b" " * 70_000 + b"2," + b"7," * 70_000 + b"3]}"
    assert decode(body, Limits()).prompt == ((1, 2, *[7] * 70_000, 3),)


class Watched(bytes):
    """A body that adds up how many of its bytes are looked for something, and copied."""

    passed = 0

    def find(self, wanted: Any, start: Any = 0, end: Any = None) -> int:
        found = super().find(wanted, start, end)
        self.passed += (found if found >= 0 else len(self) if end is None else end) - start
        return found

    def __getitem__(self, at: Any) -> Any:
        part = super().__getitem__(at)
        self.passed += len(part) if isinstance(part, bytes) else 1
        return part


@pytest.mark.parametrize("unit", [b"[1,", b'[{"1":1,"a":', b'{"1":1,"a":[1,'])
def test_no_byte_is_read_at_each_level_again(unit: bytes) -> None:
    """The end of the innermost array was looked for from each array, and all before it copied."""
    depth = 198 // (unit.count(b"[") + unit.count(b"{"))
    closing = b"".join({91: b"]", 123: b"}"}.get(sign, b"") for sign in unit[::-1])
    text = b'"' + b"x" * 4_000_000 + b'"'
    body = Watched(b'{"a":' + unit * depth + text + closing * depth + b"}")
    read_object(body)
    assert body.passed < 12 * len(body)


def test_as_many_prompts_as_an_operator_may_allow_can_be_read() -> None:
    body = b'{"model":"m","prompt":[' + b'"a",' * 59_999 + b'"a"]}'
    assert len(decode(body, Limits(max_prompts=60_000)).prompt) == 60_000


@pytest.mark.parametrize("pad", ["", PAD], ids=["short", "long"])
def test_long_numbers_and_deep_schemas_mean_the_same_in_a_long_body(pad: str) -> None:
    schema = '{"items":' * 120 + "{}" + "}" * 120
    body = f'{{"model":"m",{pad}"top_p":0.{"9" * 5000},"structured_outputs":{{"json":{schema}}}}}'
    request = decode(body.encode(), Limits())
    assert request.top_p == 1
    assert request.structured_outputs is not None
    assert request.structured_outputs.text == schema


def test_more_biases_than_any_vocabulary_has_are_not_made() -> None:
    biases = b",".join(b'"%d":1' % i for i in range(600_000))
    with pytest.raises(InvalidRequest, match="more than 524288 numbers by name") as refused:
        decode(b'{"model":"m","logit_bias":{' + biases + b"}}", Limits())
    assert refused.value.param == "logit_bias"
