"""Which processes of a ledger have been silent for so long that they are dead."""

from __future__ import annotations

from collections.abc import Iterable

DEAD_S = 30.0
"""A process without a heartbeat for so long is dead, if its lock cannot be seen from here."""
_UNWATCHED_S = 15.0
"""After such a pause this process itself stood still, and saw nobody's silence."""


class Silence:
    """The last heartbeat of each process, as far as this one watched."""

    def __init__(self, now_s: float) -> None:
        self._looked_s = now_s
        self._since: dict[str, tuple[int, float]] = {}

    def look(self, beats: Iterable[tuple[str, int]], now_s: float) -> list[str]:
        """Returns the silent ones. ``beats`` are the processes that there are, with their beats."""
        known = self._since if now_s <= self._looked_s + _UNWATCHED_S else {}
        self._looked_s = now_s
        self._since = {}
        for process_id, count in beats:
            last, since_s = known.get(process_id, (count, now_s))
            self._since[process_id] = (count, since_s if last == count else now_s)
        return [
            process_id
            for process_id, (_, since_s) in self._since.items()
            if now_s >= since_s + DEAD_S
        ]
