"""When something was made to go wrong, so that what clients saw can be excused, or not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Literal, TypeAlias

import msgspec

Trouble: TypeAlias = Literal["killed", "stopped", "holding", "locked", "full", "ending"]
_BEFORE_S = 1.0
"""A request that ended so shortly before a trouble may have met it."""


class Spell(msgspec.Struct):
    """A trouble of one server, or of all (``*``)."""

    trouble: Trouble
    server: str
    began_s: float
    ended_s: float = inf


class Weather:
    """All spells so far."""

    def __init__(self) -> None:
        self.spells: list[Spell] = []

    @contextmanager
    def spell(self, trouble: Trouble, server: str = "*") -> Iterator[None]:
        """A trouble that lasts as long as the context."""
        one = Spell(trouble, server, time.monotonic())
        self.spells.append(one)
        try:
            yield
        finally:
            one.ended_s = time.monotonic()

    def met(
        self, server: str, began_s: float, ended_s: float | None, *troubles: Trouble,
        after_s: float = 1.0,
    ) -> bool:  # fmt: skip
        """Whether a request met one of these troubles, or came at most ``after_s`` behind it."""
        until_s = inf if ended_s is None else ended_s
        return any(
            one.trouble in troubles
            and one.server in {server, "*"}
            and one.began_s - _BEFORE_S <= until_s
            and began_s <= one.ended_s + after_s
            for one in self.spells
        )
