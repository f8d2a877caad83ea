"""Server-sent events, from bytes that are split anywhere.

Source of the format: the HTML standard, "Server-sent events".
"""

from __future__ import annotations

_MOST_EVENT_BYTES = 64 * 1024 * 1024
"""More than the log-probabilities of a full context: a longer event is not valid SSE."""


class EventTooLongError(ValueError):
    """The bytes are no event stream, or an event is too long for memory."""


class EventSplitter:
    """Gives the payloads of complete events and keeps the rest for the next bytes.

    Invariant: the payloads do not depend on where the bytes are split.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, received: bytes) -> list[bytes]:
        """Returns the payloads of the events that ``received`` completes.

        Raises ``EventTooLongError``.
        """
        if (
            received.endswith(b"\n\n")
            and received.startswith(b"data: ")
            and received.count(b"\n") == 2
            and not self._rest
            and b"\r" not in received
        ):
            return [received[6:-2]]  # one whole event, the most common case
        text = self._rest + received if self._rest else received
        half = b""
        if b"\r" in text:
            # A \r at the end may be the first half of \r\n.
            half = b"\r" if text.endswith(b"\r") else b""
            text = text[: len(text) - len(half)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = text.rfind(b"\n\n")
        if end < 0:
            self._rest = text + half
            if len(self._rest) > _MOST_EVENT_BYTES:
                raise EventTooLongError
            return []
        self._rest = text[end + 2 :] + half
        payloads = []
        for event in text[:end].split(b"\n\n"):
            if event.startswith(b"data: ") and b"\n" not in event:
                payloads.append(event[6:])
            else:
                payloads += _payload(event)
        return payloads


def _payload(event: bytes) -> list[bytes]:
    """Returns the payload of an event with comments, other fields or several lines, if any."""
    lines = [
        line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")
    ]
    return [b"\n".join(lines)] if lines else []
