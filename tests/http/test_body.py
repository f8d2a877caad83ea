"""Chunked bodies: any cut into packets gives the same, and nothing grows."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.core.errors import ApiError
from afterword.http.server.body import ChunkedBody
from afterword.http.server.head import MOST_HEAD_BYTES, HeadReader

ALLOWED_BYTES = 200


def read(packets: list[bytes]) -> tuple[bytes, bytes] | str:
    """Returns the body and what follows, or the name of the error."""
    reader, body, rest = ChunkedBody(ALLOWED_BYTES), b"", b""
    try:
        for packet in packets:
            rest += packet
            while rest and not reader.complete:
                before = len(rest)
                parts, rest = reader.feed(rest)
                body += b"".join(parts)
                assert len(rest) < before
    except ApiError as error:
        return type(error).__name__
    return body, rest


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut bytes at these places, counted from the start and taken modulo their number."""
    marks = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(marks)]


chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
places = st.lists(st.integers(0, 10_000), max_size=12)


@given(chunks, st.sampled_from([b"", b";a", b' ; a="b"']), st.binary(max_size=9), places)
def test_a_body_is_read_however_it_is_cut(
    parts: list[bytes], extension: bytes, behind: bytes, at: list[int]
) -> None:
    written = b"".join(b"%X%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
    data = written + b"0\r\nx: y\r\n\r\n" + behind
    assert read(cut(data, at)) == (b"".join(parts), behind)


@given(st.text("0aF;:\r\n x\0", max_size=60), places)
def test_any_bytes_mean_the_same_however_they_are_cut(text: str, at: list[int]) -> None:
    data = text.encode()
    whole, pieces = read([data]), read(cut(data, at))
    assert whole == pieces


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"1;" + b"a" * ALLOWED_BYTES, "HeadersTooLarge"),
        (b"1" * 100_000, "HeadersTooLarge"),
        (b"1;a\r\nx\r\n" * 1000, "HeadersTooLarge"),
        (b"0\r\n" + b"a: b\r\n" * 100, "HeadersTooLarge"),
        (b"0\r\na: " + b"b" * ALLOWED_BYTES, "HeadersTooLarge"),
        (b"0" * 16 + b"1\r\n", "UnreadableRequest"),
    ],
)
def test_what_is_no_content_is_bounded(line: bytes, error: str) -> None:
    assert read([line + b"x" * 50]) == error
    assert read([line[i : i + 1] for i in range(len(line))] + [b"x"] * 50) == error


@given(st.integers(0, 3), places)
def test_a_head_is_read_however_it_is_cut(empty_lines: int, at: list[int]) -> None:
    text = b"POST /a%20b?c=d HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nrest"
    reader = HeadReader()
    rest, head = b"", None
    for packet in cut(b"\r\n" * empty_lines + text, at):
        if head is None:
            head, rest = reader.feed(rest + packet)
        else:
            rest += packet
    assert head is not None
    assert (head.method, head.path, head.query, head.length_bytes) == ("POST", "/a b", b"c=d", 0)
    assert rest == b"rest"
    assert head.size_bytes <= MOST_HEAD_BYTES


def test_blanks_around_a_value_are_no_part_of_it() -> None:
    head, _ = HeadReader().feed(
        b"POST / HTTP/1.1\r\nHost:\tx \r\nTransfer-Encoding: chunked \r\nAccept:  a b\t \r\n\r\n"
    )
    assert head is not None
    assert head.headers == [
        (b"host", b"x"),
        (b"transfer-encoding", b"chunked"),
        (b"accept", b"a b"),
    ]
    assert head.length_bytes is None
