"""What a log may show: the types and places of exceptions, and text without keys.

A log shows neither an exception's text, which may quote a request, nor paths of its source.
"""

from __future__ import annotations

import re
import traceback

import msgspec

_MOST_CAUSES = 8
_KEY = re.compile(r"(?<![a-z0-9])sk-[^\s/?&\"'`<>]*", re.IGNORECASE)
_LEAST_SECRET_CHARACTERS = 6


def without_keys(text: str, secret: str | None = None) -> str:
    """Returns text in which keys are three stars: what looks like one, and ``secret``."""
    if secret is not None and len(secret) >= _LEAST_SECRET_CHARACTERS:
        text = text.replace(secret, "***")
    return _KEY.sub("***", text)


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
