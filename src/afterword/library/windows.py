"""Where the windows lie over a text that is longer than the context."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from afterword.core.errors import InvalidRequest

_LEAST_WINDOW = 2


class Window(msgspec.Struct, frozen=True):
    """The tokens from ``first`` up to ``end``; those from ``scored`` on are scored here."""

    first: int
    scored: int
    end: int


class WindowPlan(msgspec.Struct, frozen=True):
    """The length of a window in tokens, and the distance from one to the next."""

    window_tokens: int
    stride_tokens: int

    def over(self, tokens: int) -> Iterator[Window]:
        """Yields windows over a prompt. Its first token is scored nowhere, every other one once."""
        end = min(self.window_tokens, tokens)
        yield Window(0, 1, end)
        while end < tokens:
            scored, end = end, min(end + self.stride_tokens, tokens)
            yield Window(end - self.window_tokens, scored, end)


def window_plan(context_tokens: int, window: int | None, stride: int | None) -> WindowPlan:
    """Returns the plan for a context. By default a window fills it, and half of it overlaps.

    Raises ``InvalidRequest`` for a window longer than the context, for a stride that leaves no
    token of overlap, and for what is no integer.
    """
    length = context_tokens if window is None else integer("window", window)
    if not _LEAST_WINDOW <= length <= context_tokens:
        raise InvalidRequest(
            f"Invalid value for 'window': expected {_LEAST_WINDOW} to {context_tokens} tokens, the "
            f"model's context, but got {length} instead.",
            param="window",
        )
    step = max(length // 2, 1) if stride is None else integer("stride", stride)
    if not 1 <= step < length:
        raise InvalidRequest(
            f"Invalid value for 'stride': expected 1 to {length - 1} tokens, less than the window, "
            f"but got {step} instead.",
            param="stride",
        )
    return WindowPlan(length, step)


def integer(name: str, value: object) -> int:
    """Returns a parameter's value. Raises ``InvalidRequest`` for anything but an integer."""
    if type(value) is not int:
        raise InvalidRequest(
            f"Invalid type for '{name}': expected an integer, but got {type(value).__name__} "
            "instead.",
            param=name,
        )
    return value
