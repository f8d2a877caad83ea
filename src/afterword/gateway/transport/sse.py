"""Server-sent events, from bytes that are split anywhere.

Source of the format: the HTML standard, "Server-sent events".
"""

from __future__ import annotations

from typing import TypeAlias

from afterword.gateway.long_payload import LONG_BYTES

Payload: TypeAlias = bytes | bytearray
MOST_EVENT_BYTES = 64 * 1024 * 1024
"""More than the log-probabilities of a full context: a longer event is not valid SSE."""
BOM = b"\xef\xbb\xbf"
_LEAST_BYTES = len(b"data: x\n\n")
_ERROR = frozenset({b"event: error", b"event:error"})
_ERROR_FIELD = b"error:"
"""llama-server up to 2025 had its errors in a field of this name."""


class EventTooLongError(ValueError):
    """The bytes are no event stream, or an event is longer than any that was asked for."""


class ErrorPayload(bytes):
    """The payload of an event that is called error, whatever its text is."""


class EventSplitter:
    """Gives the payloads of complete events and keeps the rest for the next bytes.

    An event has at most ``most_bytes``. Events without a payload are left out, and so is a byte
    order mark at the start. Invariant: the payloads do not depend on where the bytes are split.
    Those that came in several parts and are long are bytearrays: they are not copied.
    """

    def __init__(self, most_bytes: int = MOST_EVENT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._rest = bytearray()
        self._half = b""
        self._started = False

    def feed(self, received: bytes) -> list[Payload]:
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

    def flush(self) -> list[Payload]:
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

    def _split(self, text: bytes) -> list[Payload]:
        # Only the new bytes are searched: an event may come in thousands of parts.
        at_seam = self._rest.endswith(b"\n") and text.startswith(b"\n")
        if not at_seam and b"\n\n" not in text:
            self._rest += text
            if len(self._rest) > self._most_bytes:
                raise EventTooLongError
            return []
        if len(self._rest) + len(text) < LONG_BYTES:
            return self._events(bytes(self._rest) + text)
        event, known = self._rest, len(self._rest)
        event += text
        end = event.find(b"\n\n", max(known - 1, 0))
        others = bytes(event[end + 2 :])
        del event[end:]
        payload = self._long(event)
        return [payload, *self._events(others)] if payload else self._events(others)

    def _events(self, whole: bytes) -> list[Payload]:
        """Returns the payloads of the events in some bytes, and keeps the rest."""
        *events, rest = whole.split(b"\n\n")
        self._rest = bytearray(rest)
        payloads: list[Payload] = []
        for event in events:
            if len(event) > self._most_bytes:
                raise EventTooLongError
            payload = _payload(event)
            if payload:
                payloads.append(payload)
        return payloads

    def _long(self, event: bytearray) -> Payload:
        if len(event) > self._most_bytes:
            raise EventTooLongError
        if len(event) < LONG_BYTES:
            return _payload(bytes(event))
        if event.startswith(b"data: ") and b"\n" not in event:
            del event[:6]
            return event
        payload = _payload(bytes(event))
        return payload if isinstance(payload, ErrorPayload) else bytearray(payload)


def _payload(event: bytes) -> bytes:
    """Returns the payload of an event, whatever comments and other fields it has; b"" if none."""
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = event.split(b"\n")
    if lines[0].startswith(_ERROR_FIELD):
        return ErrorPayload(lines[0][len(_ERROR_FIELD) :].strip())
    payload = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
    return payload if _ERROR.isdisjoint(lines) else ErrorPayload(payload)
