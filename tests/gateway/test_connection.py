"""What a receiver gets of the bytes of an answer, without a network."""

from __future__ import annotations

import asyncio

import pytest

from afterword.gateway.address import parse_addresses
from afterword.gateway.failures import StreamBroke
from afterword.gateway.transport.client import HttpClient
from afterword.gateway.transport.connection import Connection, Head
from standins.server import Exchange, StandIn

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


class Upstream(asyncio.Transport):
    """The other side, which takes everything. ``is_read``: whether the loop reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_read = True

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def write(self, data: object) -> None:
        """The request is of no interest."""

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        """Nothing is open."""


class Kept:
    """A receiver. ``calls`` are the parts of the body, and the end."""

    def __init__(self) -> None:
        self.calls: list[bytes | StreamBroke | None] = []

    def head(self, head: Head) -> None:
        assert head.status == 200

    def body(self, received: bytes) -> None:
        self.calls.append(received)

    def end(self, error: StreamBroke | None) -> None:
        self.calls.append(error)


def received(*packets: bytes) -> list[bytes | StreamBroke | None]:
    connection, kept = Connection(), Kept()
    connection.connection_made(Upstream())
    connection.send(b"", kept)
    for packet in packets:
        connection.data_received(packet)
    return kept.calls


@pytest.mark.parametrize(
    ("packets", "calls"),
    [
        ((HEAD, b"1\r\na\r\n", b"1\r\nb\r\n", END), [b"a", b"b", None]),
        ((HEAD, b"1\r\na\r\n1\r\nb\r\n", END), [b"ab", None]),
        ((HEAD + b"1\r\na\r\n1\r\nb\r\n" + END,), [b"ab", None]),
        ((HEAD + b"2\r\na", b"b\r\n" + END), [b"a", b"b", None]),
    ],
)
def test_the_parts_of_a_packet_are_one(packets: tuple[bytes, ...], calls: list[object]) -> None:
    """So tokens that come together go to the client together."""
    assert received(*packets) == calls


def test_what_came_before_nonsense_counts() -> None:
    *parts, error = received(HEAD + b"1\r\na\r\nno size\r\n")
    assert parts == [b"a"]
    assert isinstance(error, StreamBroke)


MUCH = HEAD + b"%x\r\n%b\r\n" % (1 << 18, b"a" * (1 << 18))


@pytest.mark.parametrize(("packet", "reads_on"), [(HEAD + b"1\r\na\r\n", True), (MUCH, False)])
async def test_much_is_read_in_turns_with_others(packet: bytes, *, reads_on: bool) -> None:
    """The loop would read 8 MB of one socket before anything else runs."""
    connection, upstream = Connection(), Upstream()
    connection.connection_made(upstream)
    connection.send(b"", Kept())
    connection.data_received(packet)
    assert upstream.is_read == reads_on
    await asyncio.sleep(0)
    assert upstream.is_read


async def test_a_held_connection_does_not_read_on_in_its_turn() -> None:
    connection, upstream = Connection(), Upstream()
    connection.connection_made(upstream)
    connection.send(b"", Kept())
    connection.data_received(MUCH)
    connection.hold()
    await asyncio.sleep(0)
    assert not upstream.is_read
    connection.release()
    assert upstream.is_read


async def test_the_rest_of_an_answer_that_is_too_long_is_not_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("afterword.gateway.transport.client._MOST_WHOLE_BYTES", 10)

    def begin(exchange: Exchange) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n"
        exchange.transport.write(head + b"x" * 20)

    async with StandIn(begin) as upstream:
        client = HttpClient(parse_addresses(upstream.address)[0], key=None, connect_s=60)
        with pytest.raises(StreamBroke, match="too long"):
            await client.exchange("POST", "/x", b"{}", timeout_s=60)
        assert client.take_idle() is None
        client.close()
