"""A thread for long work. Owners of waiting work take turns."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class FairPool:
    """Does one piece of work at a time, on a thread of its own. It belongs to the event loop.

    Invariants: an owner is in the line if and only if work of it waits; nothing waits while the
    thread is idle.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._line: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._busy = False

    @property
    def waiting(self) -> int:
        """How many pieces of work wait."""
        return sum(map(len, self._line.values()))

    async def run(self, owner: str, work: Callable[[], T]) -> T:
        """Returns the result of ``work``. Each owner with waiting work gets one turn in a round.

        A cancelled call leaves the line. Work that has begun goes on, and the thread is taken until
        its end.
        """
        if self._busy:
            await self._turn(owner)
        self._busy = True
        loop = asyncio.get_running_loop()
        try:
            done = loop.run_in_executor(self._thread, work)
        except BaseException:
            self._pass_on()
            raise
        done.add_done_callback(self._done)
        # Without the shield a cancelled call would free the thread before its work ends.
        return await asyncio.shield(done)

    def _done(self, done: asyncio.Future[T]) -> None:
        # Taken note of: nobody may be left to get the exception.
        if not done.cancelled():
            done.exception()
        self._pass_on()

    async def _turn(self, owner: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.setdefault(owner, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The turn came together with the cancellation.
                self._pass_on()
            else:
                self._leave(owner, turn)
            raise

    def _leave(self, owner: str, turn: asyncio.Future[None]) -> None:
        mine = self._line.get(owner)
        if mine is None or turn not in mine:
            return
        mine.remove(turn)
        if not mine:
            del self._line[owner]

    def _pass_on(self) -> None:
        """Give the thread to the next owner's oldest work; owners with more go to the end."""
        while self._line:
            owner, mine = next(iter(self._line.items()))
            turn = mine.popleft()
            if mine:
                self._line.move_to_end(owner)
            else:
                del self._line[owner]
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False
