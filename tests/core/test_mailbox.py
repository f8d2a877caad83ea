"""The mailbox merges when its reader lags, and loses nothing."""

from __future__ import annotations

import asyncio
from array import array

import pytest

from afterword.core.errors import EngineFailed
from afterword.core.job import Ended, Event, Prefilled, Sampled
from afterword.core.mailbox import Mailbox


def sampled(seq: int, token: int) -> Sampled:
    return Sampled(
        0, seq, array("i", [token]), array("d", [-1.0]), array("i", [token, 9]),
        array("d", [-1.0, -2.0]),
    )  # fmt: skip


async def test_a_lagging_reader_finds_one_event_a_sequence() -> None:
    mailbox = Mailbox()
    mailbox.put([Prefilled(0, 3, 0, None)])
    for token in range(1000):
        mailbox.put([sampled(0, token), sampled(1, token)])
    mailbox.put([Ended(0, 0, "length", 1000)])
    events = await mailbox.take()
    assert [type(e) for e in events] == [Prefilled, Sampled, Sampled, Ended]
    first = events[1]
    assert isinstance(first, Sampled)
    assert first.tokens.tolist() == list(range(1000))
    assert len(first.top_ids) == 2000
    # Waiting tokens are numbers in arrays, not objects.
    assert first.tokens.itemsize == 4


async def test_take_waits_and_ends_after_close() -> None:
    mailbox = Mailbox()
    reader = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    assert not reader.done()
    mailbox.put([sampled(0, 5)])
    events: list[Event] = await reader
    assert len(events) == 1
    mailbox.put([sampled(0, 6)])
    mailbox.close()
    assert len(await mailbox.take()) == 1
    assert await mailbox.take() == []


async def test_an_error_comes_after_what_was_pending() -> None:
    mailbox = Mailbox()
    mailbox.put([sampled(0, 5)])
    mailbox.close(EngineFailed("broken"))
    assert len(await mailbox.take()) == 1
    with pytest.raises(EngineFailed):
        await mailbox.take()


async def test_events_taken_are_not_changed_by_later_ones() -> None:
    mailbox = Mailbox()
    mailbox.put([sampled(0, 1)])
    (first,) = await mailbox.take()
    mailbox.put([sampled(0, 2)])
    assert isinstance(first, Sampled)
    assert first.tokens.tolist() == [1]


class Shortcut:
    """Takes events while there are fewer than ``most`` at once."""

    def __init__(self, most: int = 2) -> None:
        self.most = most
        self.taken: list[Event] = []

    def __call__(self, events: list[Event]) -> bool:
        if len(events) >= self.most:
            return False
        self.taken += events
        return True


async def waiting(mailbox: Mailbox) -> asyncio.Task[list[Event]]:
    """A reader that waits for events."""
    reader = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    return reader


async def test_a_shortcut_takes_events_while_the_reader_waits() -> None:
    mailbox = Mailbox()
    mailbox.shortcut = shortcut = Shortcut()
    mailbox.put([sampled(0, 1)])
    assert not shortcut.taken  # the reader is not there, so it may be sending
    assert len(await mailbox.take()) == 1
    reader = await waiting(mailbox)
    mailbox.put([sampled(0, 2)])
    mailbox.put([sampled(0, 3)])
    await asyncio.sleep(0)
    assert not reader.done()
    tokens = [e.tokens.tolist() for e in shortcut.taken if isinstance(e, Sampled)]
    assert tokens == [[2], [3]]
    mailbox.close()
    assert await reader == []


async def test_what_the_shortcut_does_not_take_wakes_the_reader() -> None:
    mailbox = Mailbox()
    mailbox.shortcut = shortcut = Shortcut()
    reader = await waiting(mailbox)
    mailbox.put([sampled(0, 1), sampled(1, 2)])
    mailbox.put([sampled(2, 3)])  # the reader is awake, although it does not run yet
    assert not shortcut.taken
    seqs = [e.seq for e in await reader if isinstance(e, Sampled)]
    assert seqs == [0, 1, 2]


async def test_a_shortcut_is_offered_events_only() -> None:
    """A chunk of an upstream may have none, as one that has the usage alone."""
    mailbox = Mailbox()
    mailbox.shortcut = lambda events: bool(events[0])
    reader = await waiting(mailbox)
    mailbox.put([])
    await asyncio.sleep(0)
    assert not reader.done()
    mailbox.close()
    assert await reader == []


async def test_what_comes_inside_a_shortcut_comes_after_it() -> None:
    mailbox = Mailbox()
    order: list[str] = []

    def shortcut(events: list[Event]) -> bool:
        if not isinstance(events[0], Sampled):
            return False
        mailbox.put([Ended(0, 0, "stop", 1)])
        order.append("sampled")
        return True

    mailbox.shortcut = shortcut
    reader = await waiting(mailbox)
    mailbox.put([sampled(0, 1)])
    assert [type(e) for e in await reader] == [Ended]
    assert order == ["sampled"]


async def test_an_error_of_a_shortcut_is_the_readers() -> None:
    mailbox = Mailbox()

    def shortcut(events: list[Event]) -> bool:
        raise EngineFailed("broken")

    mailbox.shortcut = shortcut
    reader = await waiting(mailbox)
    mailbox.put([sampled(0, 1)])
    with pytest.raises(EngineFailed):
        await reader
