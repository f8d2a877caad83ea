"""Exceptions as a log may show them: types and places.

A log shows neither their text, which may quote a request, nor paths of the machine.
"""

from __future__ import annotations

import traceback

import msgspec

_MOST_CAUSES = 8


class Fault(msgspec.Struct, frozen=True):
    """One exception: its type, and ``module.function:line`` of each frame, outermost first."""

    type: str
    places: list[str]


def faults_of(error: BaseException) -> list[Fault]:
    """Returns an exception and its causes, outermost first."""
    faults: list[Fault] = []
    current: BaseException | None = error
    while current is not None and len(faults) < _MOST_CAUSES:
        places = [
            f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_qualname}:{line}"
            for frame, line in traceback.walk_tb(current.__traceback__)
        ]
        faults.append(Fault(type(current).__qualname__, places))
        current = current.__cause__ or current.__context__
    return faults


def in_one_line(error: BaseException) -> str:
    """Returns an exception and its causes as JSON."""
    return msgspec.json.encode(faults_of(error)).decode()
