"""Times the parts of a request, for answers that show them (F5)."""

from __future__ import annotations

from collections.abc import Callable


class Stopwatch:
    """How long a request's prompt took, and its generation so far (F5).

    ``clock`` returns monotonic seconds. The prompt's time begins when its engine takes it and ends
    with the first token; the generation's time begins there.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._taken_s = self._first_s = self._last_s = 0.0
        self._generates = False

    def taken(self) -> None:
        """Note that an engine computes the request now."""
        self._taken_s = self._first_s = self._last_s = self._clock()

    def read(self, *, generates: bool) -> None:
        """Note the time of events that came. ``generates``: there are tokens by now."""
        self._last_s = self._clock()
        if not self._generates:
            self._generates = generates
            self._first_s = self._last_s

    @property
    def prompt_ms(self) -> float:
        """The milliseconds from the start to the first token."""
        return (self._first_s - self._taken_s) * 1000

    @property
    def generated_ms(self) -> float:
        """The milliseconds from the first token to the last one."""
        return (self._last_s - self._first_s) * 1000
