"""Server-sent events from bytes that are split anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.gateway.transport import sse
from afterword.gateway.transport.sse import EventSplitter, EventTooLongError

PAYLOADS = st.lists(st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b"")), max_size=6)  # fmt: skip  # noqa: E501
LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def fed(data: bytes, cuts: list[int]) -> list[bytes]:
    splitter = EventSplitter()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    found = []
    for start, end in pairwise(edges):
        found += splitter.feed(data[start:end])
    return found


@given(PAYLOADS, LINE_ENDS, st.lists(st.integers(0, 200), max_size=8))
def test_any_split_gives_the_same_payloads(
    payloads: list[bytes], end: bytes, cuts: list[int]
) -> None:
    data = b"".join(b": comment" + end + b"data: " + p + end + end for p in payloads) + b"\n"
    # A \r at the end may be half a line end; the next byte decides.
    assert fed(data, cuts) == payloads


def test_fields_that_mean_nothing_here() -> None:
    data = b"event: x\nid: 4\ndata: a\ndata:b\ndata:  c\n\n: only a comment\n\nretry: 5\n\ndata\n\n"
    assert fed(data, []) == [b"a\nb\n c"]


def test_an_event_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_MOST_EVENT_BYTES", 10)
    with pytest.raises(EventTooLongError):
        fed(b"data: 0123456789", [])
