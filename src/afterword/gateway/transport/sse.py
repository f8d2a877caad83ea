"""Server-sent events, from bytes that are split anywhere.

Source of the format: the HTML standard, "Server-sent events".
"""

from __future__ import annotations

MOST_EVENT_BYTES = 64 * 1024 * 1024
"""More than the log-probabilities of a full context: a longer event is not valid SSE."""
BOM = b"\xef\xbb\xbf"
_LEAST_BYTES = len(b"data: x\n\n")
_ERROR = frozenset({b"event: error", b"event:error"})


class EventTooLongError(ValueError):
    """The bytes are no event stream, or an event is longer than any that was asked for."""


class ErrorPayload(bytes):
    """The payload of an event that is called error, whatever its text is."""


class EventSplitter:
    """Gives the payloads of complete events and keeps the rest for the next bytes.

    An event has at most ``most_bytes``. Events without a payload are left out, and so is a byte
    order mark at the start. Invariant: the payloads do not depend on where the bytes are split.
    """

    def __init__(self, most_bytes: int = MOST_EVENT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._rest = bytearray()
        self._half = b""
        self._started = False

    def feed(self, received: bytes) -> list[bytes]:
        """Returns the payloads of the events that ``received`` completes.

        Raises ``EventTooLongError``.
        """
        if (
            self._started
            and not self._rest
            and not self._half
            and _LEAST_BYTES <= len(received) <= self._most_bytes + 2
            and received.startswith(b"data: ")
            and received.endswith(b"\n\n")
            and received.count(b"\n") == 2
            and b"\r" not in received
        ):
            return [received[6:-2]]  # one whole event, the most common case
        text = received
        if not self._started or self._half or b"\r" in received:
            text = self._normalized(received)
        return self._split(text)

    def flush(self) -> list[bytes]:
        """Returns the payload of an event that the end of the stream completes."""
        return self._split(b"\n\n")

    def _normalized(self, received: bytes) -> bytes:
        r"""Returns the bytes with ``\n`` as line ends and without a byte order mark in front."""
        text, self._half = self._half + received, b""
        if not self._started:
            if text != BOM and BOM.startswith(text):
                self._half = text
                return b""
            self._started = True
            text = text.removeprefix(BOM)
        if b"\r" in text:
            if text.endswith(b"\r"):  # perhaps the first half of \r\n
                self._half, text = b"\r", text[:-1]
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return text

    def _split(self, text: bytes) -> list[bytes]:
        # Only the new bytes are searched: an event may come in thousands of parts.
        at_seam = self._rest.endswith(b"\n") and text.startswith(b"\n")
        if not at_seam and b"\n\n" not in text:
            self._rest += text
            if len(self._rest) > self._most_bytes:
                raise EventTooLongError
            return []
        whole = bytes(self._rest) + text
        end = whole.rfind(b"\n\n")
        self._rest = bytearray(whole[end + 2 :])
        payloads = []
        for event in whole[:end].split(b"\n\n"):
            if len(event) > self._most_bytes:
                raise EventTooLongError
            payload = _payload(event)
            if payload:
                payloads.append(payload)
        return payloads


def _payload(event: bytes) -> bytes:
    """Returns the payload of an event, whatever comments and other fields it has; b"" if none."""
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = event.split(b"\n")
    payload = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
    return payload if _ERROR.isdisjoint(lines) else ErrorPayload(payload)
