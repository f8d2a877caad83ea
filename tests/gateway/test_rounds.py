"""Streams that are read in rounds, on sockets of their own and a clock that only the test moves."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, cast

import pytest

from afterword.gateway.address import parse_addresses
from afterword.gateway.failures import StreamBroke
from afterword.gateway.transport.client import HttpClient
from afterword.gateway.transport.connection import Head
from afterword.gateway.transport.rounds import ReadingRounds
from standins.server import Exchange, StandIn

ROUND_S = 0.01
ROUND_BYTES = 1 << 16
"""The most that a round reads from one stream."""
LONG = b"x" * 2 * ROUND_BYTES


class Timer:
    """A callback that is due at a time."""

    def __init__(self, due_s: float, call: Callable[[], None]) -> None:
        self.due_s = due_s
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """A loop that does nothing by itself. ``watched`` is what it calls when packets come."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.watched: Callable[[], None] | None = None
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now_s

    def add_reader(self, _: int, call: Callable[[], None]) -> None:
        assert self.watched is None
        self.watched = call

    def remove_reader(self, _: int) -> None:
        assert self.watched is not None
        self.watched = None

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now_s + seconds, call))
        return self.timers[-1]

    @property
    def timer(self) -> Timer | None:
        """The one timer that runs."""
        running = [timer for timer in self.timers if not timer.cancelled]
        assert len(running) <= 1
        return running[0] if running else None

    def packets(self) -> None:
        """Packets have come. Nobody is called unless they are waited for."""
        if self.watched is not None:
            self.watched()

    def next_round(self) -> None:
        """The time of the timer has come."""
        timer = self.timer
        assert timer is not None
        self.timers.remove(timer)
        self.now_s = timer.due_s
        timer.call()


class Stream:
    """A stream that has joined. ``read`` is what it got, ``broke`` how it ended."""

    def __init__(self, rounds: ReadingRounds) -> None:
        self.socket, self.other = socket.socketpair()
        self.socket.settimeout(0)
        self.number = self.socket.fileno()
        self.read: list[bytes] = []
        self.broke: bool | None = None
        self.when_read: Callable[[], None] = _nothing
        self._rounds = rounds
        rounds.join(self.number, self)

    def data_received(self, data: bytes) -> None:
        self.read.append(data)
        self.when_read()

    def round_ended(self, *, broke: bool) -> None:
        self.broke = broke
        self.leave()

    def leave(self) -> None:
        self._rounds.leave(self.number)

    def close(self) -> None:
        self.socket.close()
        self.other.close()


def _nothing() -> None:
    return


class Bench:
    """Streams, their rounds and their loop."""

    def __init__(self, opened: ExitStack) -> None:
        self.loop = Loop()
        self.rounds = ReadingRounds(ROUND_S, cast("asyncio.AbstractEventLoop", self.loop))
        opened.callback(self.rounds.close)
        self._opened = opened

    def streams(self, count: int) -> list[Stream]:
        made = [Stream(self.rounds) for _ in range(count)]
        for stream in made:
            self._opened.callback(stream.close)
        return made

    def send(self, *streams: Stream, after_s: float = 0, data: bytes = b"a") -> None:
        self.loop.now_s += after_s
        for stream in streams:
            stream.other.sendall(data)
        self.loop.packets()

    def crowd(self, one: Stream, other: Stream) -> None:
        """Let packets come so soon after each other that rounds follow the clock."""
        self.send(one)
        self.send(other, after_s=ROUND_S / 10)
        assert self.loop.watched is None
        one.read.clear()
        other.read.clear()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ExitStack() as opened:
        yield Bench(opened)


def test_rare_packets_are_read_at_once(bench: Bench) -> None:
    one, other = bench.streams(2)
    for stream in (one, other, one):
        bench.send(stream, after_s=ROUND_S / 2)
    assert one.read == [b"a", b"a"]
    assert other.read == [b"a"]
    assert bench.loop.timer is None


def test_many_packets_wait_for_a_round_and_are_read_together(bench: Bench) -> None:
    streams = bench.streams(4)
    bench.crowd(*streams[:2])
    timer = bench.loop.timer
    assert timer is not None
    assert timer.due_s == pytest.approx(bench.loop.now_s + ROUND_S)
    bench.send(*streams)
    bench.send(streams[0])
    assert [stream.read for stream in streams] == [[]] * 4
    bench.loop.next_round()
    assert [stream.read for stream in streams] == [[b"aa"], [b"a"], [b"a"], [b"a"]]
    assert bench.loop.timer is not None


@pytest.mark.parametrize("count", [0, 1])
def test_rounds_end_when_packets_become_rare(bench: Bench, count: int) -> None:
    one, other = bench.streams(2)
    bench.crowd(one, other)
    bench.send(*[one, other][:count])
    bench.loop.next_round()
    assert bench.loop.timer is None
    assert len(one.read) == count
    bench.send(other, after_s=ROUND_S)
    assert other.read == [b"a"]
    assert bench.loop.timer is None


def test_a_stream_without_a_pause_does_not_wait_for_the_clock(bench: Bench) -> None:
    one, other = bench.streams(2)
    bench.crowd(one, other)
    one.other.settimeout(0)
    sent_bytes = one.other.send(LONG)
    assert sent_bytes > ROUND_BYTES
    bench.send(other)
    now_s = bench.loop.now_s + ROUND_S
    bench.loop.next_round()
    assert bench.loop.timer is not None
    assert bench.loop.timer.due_s == pytest.approx(now_s)
    while bench.loop.timer is not None:
        bench.loop.next_round()
    assert sum(map(len, one.read)) == sent_bytes


def test_a_stream_that_leaves_in_a_round_is_not_read(bench: Bench) -> None:
    one, other = streams = bench.streams(2)
    bench.crowd(one, other)
    one.when_read, other.when_read = other.leave, one.leave
    bench.send(one, other)
    bench.loop.next_round()
    assert sorted(stream.read for stream in streams) == [[], [b"a"]]


def test_ends(bench: Bench) -> None:
    one, other = bench.streams(2)
    bench.crowd(one, other)
    one.other.close()
    bench.send(other)
    bench.loop.next_round()
    assert one.broke is False
    assert other.read == [b"a"]


def test_a_socket_that_breaks(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    ours.settimeout(0)
    (stream,) = bench.streams(1)
    stream.leave()
    stream.number = ours.fileno()
    bench.rounds.join(stream.number, stream)
    # Closing resets the connection.
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    bench.loop.packets()
    assert stream.broke is True
    ours.close()


def test_nothing_runs_after_the_end(bench: Bench) -> None:
    one, other = bench.streams(2)
    bench.crowd(one, other)
    bench.rounds.close()
    assert bench.loop.timer is None
    assert bench.loop.watched is None
    one.leave()
    bench.rounds.close()


def test_all_are_watched_by_one_reader(bench: Bench) -> None:
    one, *others = bench.streams(3)
    one.leave()
    (again,) = bench.streams(1)
    bench.send(again, *others)
    assert [cast("Any", stream).read for stream in (again, *others)] == [[b"a"]] * 3


class Answer:
    """A receiver whose parts can be waited for."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[bytes | StreamBroke | None] = asyncio.Queue()

    def head(self, head: Head) -> None:
        assert head.status == 200

    def body(self, received: bytes) -> None:
        self.calls.put_nowait(received)

    def end(self, error: StreamBroke | None) -> None:
        self.calls.put_nowait(error)


class NotedRounds(ReadingRounds):
    """Rounds that know who is in them."""

    def __init__(self) -> None:
        super().__init__(ROUND_S)
        self.joined: list[int] = []

    def join(self, number: int, stream: Any) -> None:
        self.joined.append(number)
        super().join(number, stream)

    def leave(self, number: int) -> None:
        self.joined.remove(number)
        super().leave(number)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_is_in_rounds_to_the_end_of_its_answer(*, reset: bool) -> None:
    rounds, answer = NotedRounds(), Answer()
    async with StandIn(Exchange.begin) as upstream:
        address = parse_addresses(upstream.address)[0]
        client = HttpClient(address, key=None, connect_s=60, rounds=rounds)
        request = client.request("POST", "/x", b"{}")
        connection = await client.connect()
        for _ in range(2):  # after its answer, the loop reads it again
            connection.send(request, answer)
            connection.join_rounds()
            assert len(rounds.joined) == 1
            await upstream.until_asked(1)
            upstream.bodies.clear()
            (other,) = upstream.connections
            other.part(b"a")
            assert await answer.calls.get() == b"a"
            other.part(b"b")
            assert await answer.calls.get() == b"b"
            if reset:
                _reset(other)
                assert isinstance(await answer.calls.get(), StreamBroke)
                assert not rounds.joined
                assert not connection.reusable
                break
            other.transport.write(b"0\r\n\r\n")
            assert await answer.calls.get() is None
            assert not rounds.joined
            assert connection.reusable
        connection.abort()
        client.close()
    rounds.close()


def _reset(exchange: Exchange) -> None:
    connected = exchange.transport.get_extra_info("socket")
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.transport.abort()


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("end", ["answer", "reset", "abort"])
async def test_a_held_connection_reads_nothing(*, joined: bool, end: str) -> None:
    rounds, answer = NotedRounds(), Answer()
    async with StandIn(Exchange.begin) as upstream:
        address = parse_addresses(upstream.address)[0]
        client = HttpClient(address, key=None, connect_s=60, rounds=rounds)
        connection = await client.connect()
        connection.send(client.request("POST", "/x", b"{}"), answer)
        if joined:
            connection.join_rounds()
        await upstream.until_asked(1)
        (other,) = upstream.connections
        other.part(b"a")
        assert await answer.calls.get() == b"a"
        for _ in range(2):  # a second call changes nothing
            connection.hold()
        other.part(b"b")
        if end == "reset":
            _reset(other)
        elif end == "answer":
            other.transport.write(b"0\r\n\r\n")
        # By then the loop would have read what was written before.
        await client.exchange("GET", "/health", timeout_s=60)
        assert answer.calls.empty()
        assert not rounds.joined
        if end == "abort":
            connection.abort()
            await other.gone.wait()
        for _ in range(2):
            connection.release()
        if end == "answer":
            assert await answer.calls.get() == b"b"
            assert await answer.calls.get() is None
            assert connection.reusable
        elif end == "reset":
            while not isinstance(await answer.calls.get(), StreamBroke):
                pass
        assert not rounds.joined
        connection.abort()
        client.close()
    rounds.close()


@pytest.mark.parametrize("joined", [False, True])
async def test_a_connection_is_read_again_after_an_answer_that_came_whole(*, joined: bool) -> None:
    """Held in the last part of an answer, it serves the next request."""
    rounds = NotedRounds()

    class Holding(Answer):
        def body(self, received: bytes) -> None:
            if joined:
                connection.join_rounds()
            connection.hold()
            super().body(received)

    async with StandIn(Exchange.whole) as upstream:
        client = HttpClient(
            parse_addresses(upstream.address)[0], key=None, connect_s=60, rounds=rounds
        )
        connection = await client.connect()
        for _ in range(2):
            answer = Holding()
            connection.send(client.request("POST", "/x", b"{}"), answer)
            while await answer.calls.get() is not None:
                connection.release()
            assert not rounds.joined
        connection.abort()
        client.close()
    rounds.close()
