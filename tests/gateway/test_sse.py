"""Server-sent events from bytes that are split anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.gateway.transport.sse import EventSplitter, EventTooLongError, Payload

PAYLOADS = st.lists(st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b"")), max_size=6)  # fmt: skip  # noqa: E501
LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def fed(data: bytes, cuts: list[int], most_bytes: int = 1000) -> list[Payload]:
    splitter = EventSplitter(most_bytes)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    found: list[Payload] = []
    for start, end in pairwise(edges):
        found += splitter.feed(data[start:end])
    return found


@given(
    PAYLOADS,
    LINE_ENDS,
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.booleans(),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_any_split_gives_the_same_payloads(
    payloads: list[bytes], end: bytes, mark: bytes, commented: bool, cuts: list[int]
) -> None:
    comment = b": comment" + end if commented else b""
    events = b"".join(comment + b"data: " + p + end + end for p in payloads)
    # A \r at the end may be half a line end; the next byte decides.
    data = mark + events + b"\n"
    assert fed(data, cuts) == [payload for payload in payloads if payload]


def test_whole_events_are_those_of_any_split() -> None:
    """An event that comes alone is read in a shorter way."""
    splitter = EventSplitter(10)
    assert splitter.feed(b"data: a\n\n") == [b"a"]
    assert splitter.feed(b"data: \n\n") == []
    assert splitter.feed(b"data: 0123\n\n") == [b"0123"]
    with pytest.raises(EventTooLongError):
        splitter.feed(b"data: 01234\n\n")


def test_fields_that_mean_nothing_here() -> None:
    data = b"event: x\nid: 4\ndata: a\ndata:b\ndata:  c\n\n: only a comment\n\nretry: 5\n\ndata\n\n"
    assert fed(data, []) == [b"a\nb\n c"]


@pytest.mark.parametrize("data", [b"data: 0123456789", b": a comment", b"data: 0123456789\n\n"])
@pytest.mark.parametrize("cuts", [[], [4], list(range(16))])
def test_an_event_without_end(data: bytes, cuts: list[int]) -> None:
    with pytest.raises(EventTooLongError):
        fed(data, cuts, most_bytes=10)


def test_the_end_of_a_stream_completes_an_event() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: a\n\ndata: [DONE]") == [b"a"]
    assert splitter.flush() == [b"[DONE]"]
    assert splitter.flush() == []


def test_a_long_event_in_many_parts_costs_no_more_than_its_bytes() -> None:
    """Only new bytes are searched: 4 MB in parts of 64 bytes would else be 137 GB to look at."""
    splitter = EventSplitter()
    splitter.feed(b"data: ")
    part = b"x" * 64
    for _ in range(1 << 16):
        assert splitter.feed(part) == []
    assert len(splitter.feed(b"\n\n")[0]) == 1 << 22
