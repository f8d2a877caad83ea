"""``afterword`` with a wall clock that another process moves: ``python -m chaos.shifted FILE …``.

The file holds the seconds to add, as a double. ``time.time`` is where the program asks for the
date; the monotonic clock stays, as it does when a real machine's clock is set.
"""

from __future__ import annotations

import mmap
import sys
import time
from collections.abc import Callable
from pathlib import Path
from struct import Struct

_SECONDS = Struct("d")


class ClockShift:
    """The seconds in a file, which several processes have open."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_SECONDS.pack(0.0))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SECONDS.size)

    @property
    def seconds(self) -> float:
        value: float = _SECONDS.unpack_from(self._map)[0]
        return value

    def set(self, seconds: float) -> None:
        _SECONDS.pack_into(self._map, 0, seconds)


def shifted(clock: Callable[[], float], shift: ClockShift) -> Callable[[], float]:
    """Returns the clock with the shift of the moment."""
    return lambda: clock() + shift.seconds


if __name__ == "__main__":
    time.time = shifted(time.time, ClockShift(Path(sys.argv.pop(1))))
    # The program takes the function when it is imported.
    from afterword.cli import main

    main()
