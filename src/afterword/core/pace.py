"""Long work on the event loop in slices, between which other requests run."""

from __future__ import annotations

import asyncio

SLICE_COST = 2000
"""The cost of a slice: about as many microseconds, a few milliseconds on a slow machine."""


class Pace:
    """Counts the cost of work, and lets others run when a slice is over.

    Costs are rough microseconds. Invariant: no work between two pauses costs more than a slice and
    its own last piece, so pieces have to be small. ``pauses`` counts.
    """

    def __init__(self) -> None:
        self._spent = 0.0
        self.pauses = 0

    async def spend(self, cost: float) -> None:
        """Count work that was done. Call it before more is."""
        self._spent += cost
        if self._spent >= SLICE_COST:
            self._spent = 0.0
            self.pauses += 1
            await asyncio.sleep(0)
