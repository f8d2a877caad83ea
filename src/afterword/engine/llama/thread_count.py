"""How many threads compute a batch while other programs use the cores, too.

A thread that the system stops in the middle of its part of an operation holds up the others. So two
threads beside one busy program on two cores are slower than one. Which number is best depends on
what else runs, on the model and on the batch: it is tried.
"""

from __future__ import annotations

_TRIAL_S = 0.1
"""A trial has as many batches as would have taken so long."""
_FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 8.0
"""Between two trials in one direction. Once no number has paid, the pause doubles."""
_REST = 10
"""A trial that loses time is followed by a pause of at least so many times what it lost."""
_DOWN, _UP = -1, 1
_PAYS = {_DOWN: 0.9, _UP: 1.0}
"""Another number of threads is taken if batches take at most this part of the time with it."""
_AWAY = 0.2
"""Other programs are in the way if the engine's thread did not run for this part of the time."""
_AWAY_OVER_S = 0.2
_FORGOTTEN_S = 1.0
"""After so long without a batch, nothing is known of other programs."""
_NEWEST = 0.25
"""The weight of the newest batch in the usual time of its size."""
_FEW = 32
"""Batches of up to so many tokens are compared with batches of the same size only."""


class ThreadCount:
    """The numbers of threads of a context's batches: one for few tokens, and one for many.

    A lone row waits for memory, and a prompt for the processor. So the number that is best for one
    may be a bad one for the other. Used by one thread.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._few, self._many = _Count(most), _Count(most)

    def for_batch(self, tokens: int, now: float) -> int:
        """Returns how many threads compute the batch that begins now. ``now`` is in seconds."""
        return self._of(tokens).for_batch(tokens, now)

    def took(self, tokens: int, threads: int, now: float, *, wall_s: float, cpu_s: float) -> None:
        """Learn from a batch that ``threads`` computed, as ``for_batch`` said.

        ``wall_s`` went by, in which the engine's thread ran for ``cpu_s``.
        """
        self._of(tokens).took(tokens, threads, now, wall_s=wall_s, cpu_s=cpu_s)

    def count(self, tokens: int) -> int:
        """Returns how many threads compute batches of so many tokens, except in trials."""
        return self._of(tokens).count

    def _of(self, tokens: int) -> _Count:
        return self._few if tokens <= _FEW else self._many


class _Count:
    """One of these numbers.

    It is ``most`` until other programs are in the way of the engine's thread. Then one less is
    tried, and two, three, ... less where that did not pay; and more from time to time. A trial that
    pays changes ``count``. None has fewer than half or more than twice as many threads: so it takes
    hardly longer than twice the usual time, whatever a batch takes.

    Invariant: 1 <= ``count`` <= ``most``.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = most
        self._usual: dict[int, float] = {}  # seconds a token, by size of the batch
        self._away = 0.0
        self._next = {_DOWN: _Next(0.0), _UP: _Next(0.0)}
        self._trial: _Trial | None = None
        self._ended = 0.0  # the last batch

    def for_batch(self, tokens: int, now: float) -> int:
        if now - self._ended > _FORGOTTEN_S:
            self._forget_others()
        if _size(tokens) not in self._usual:
            # There is nothing to compare it with.
            return self.count
        if self._trial is None and (direction := self._direction(now)):
            self._trial = _Trial(direction, self._tried(direction))
        return self._trial.threads if self._trial else self.count

    def took(self, tokens: int, threads: int, now: float, *, wall_s: float, cpu_s: float) -> None:
        self._ended = now
        size = _size(tokens)
        if self._trial is not None and threads != self.count:
            self._trial.add(size, tokens, wall_s, self._usual[size])
            if self._trial.expected_s >= _TRIAL_S:
                self._end(self._trial, now)
            return
        usual = self._usual.get(size, wall_s / tokens)
        self._usual[size] = usual + _NEWEST * (wall_s / tokens - usual)
        self._away += min(1.0, wall_s / _AWAY_OVER_S) * (1 - cpu_s / wall_s - self._away)

    def _forget_others(self) -> None:
        self._away = 0.0
        if self._trial is not None and self._trial.direction == _DOWN:
            self._trial = None

    def _direction(self, now: float) -> int:
        """Returns in which direction a trial is due; 0 for none."""
        if self.count < self.most and now >= self._next[_UP].due_s:
            return _UP
        if self.count > 1 and self._away > _AWAY and now >= self._next[_DOWN].due_s:
            return _DOWN
        return 0

    def _tried(self, direction: int) -> int:
        """Returns how many threads the next trial in a direction has."""
        threads = self.count + direction * self._next[direction].step
        return min(max(threads, -(-self.count // 2)), 2 * self.count, self.most)

    def _end(self, trial: _Trial, now: float) -> None:
        self._trial = None
        direction = trial.direction
        following = self._next[direction]
        if trial.took_s <= _PAYS[direction] * trial.expected_s:
            self.count = trial.threads
            self._usual = trial.usual
            self._away = 0.0
            self._next = {
                direction: _Next(now, 2 * following.step),
                -direction: _Next(now + _FIRST_PAUSE_S),
            }
            return
        lost = min(trial.took_s - trial.expected_s, trial.expected_s)
        following.due_s = now + max(following.pause_s, _REST * lost)
        following.step += max(1, following.step // 2)
        if self._tried(direction) != trial.threads:
            return
        following.step = 1
        # Who is in the way with few threads, too, may give more of the cores to more of them.
        if direction == _DOWN or self._away <= _AWAY:
            following.pause_s = min(2 * following.pause_s, MOST_PAUSE_S)


class _Next:
    """The next trial in one direction: when it is due, and how many threads less or more it has.

    If it does not pay, the one behind it waits for ``pause_s``, and has a larger step.
    """

    def __init__(self, due_s: float, step: int = 1) -> None:
        self.due_s = due_s
        self.step = step
        self.pause_s = _FIRST_PAUSE_S


class _Trial:
    """What batches took with another number of threads, and would have taken with ``count``."""

    def __init__(self, direction: int, threads: int) -> None:
        self.direction = direction
        self.threads = threads
        self.expected_s = 0.0
        self.took_s = 0.0
        self.usual: dict[int, float] = {}

    def add(self, size: int, tokens: int, wall_s: float, usual: float) -> None:
        self.expected_s += usual * tokens
        self.took_s += wall_s
        self.usual[size] = wall_s / tokens


def _size(tokens: int) -> int:
    """Returns what batches of about this many tokens have in common."""
    return tokens if tokens <= _FEW else _FEW + tokens.bit_length()
