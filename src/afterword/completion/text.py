"""Decodes bytes and finds stop strings as they come. How the bytes are split does not matter."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Detokenizer:
    """Decodes UTF-8 incrementally, and counts characters from the start of the prompt's text.

    Invariant: the text does not depend on how the bytes were split. Bytes that cannot become a
    character give U+FFFD. Bytes that still may are pending; ``_between`` means that none are.
    """

    def __init__(self, *, characters: int = 0, pending: bytes = b"") -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder.decode(pending)
        self._between = not pending
        self.characters = characters

    @property
    def pending(self) -> bytes:
        """The bytes of an incomplete character."""
        return self._decoder.getstate()[0]

    def feed(self, piece: bytes) -> tuple[str, int]:
        """Returns the text that ``piece`` completes, and the offset of its first character."""
        offset = self.characters
        if self._between:
            try:
                text = piece.decode()
            except UnicodeDecodeError:
                pass  # the piece ends inside a character, or is not UTF-8
            else:
                self.characters = offset + len(text)
                return text, offset
        pending = self.pending
        if piece and not _continues(pending, piece[0]):
            # The pending bytes become U+FFFD, and the piece starts after it.
            offset += len(pending.decode("utf-8", "replace"))
        text = self._decoder.decode(piece)
        self._between = not self.pending
        self.characters += len(text)
        return text, offset

    def flush(self) -> str:
        """Returns the rest, after which nothing comes: U+FFFD for an incomplete character (A4)."""
        text = self._decoder.decode(b"", final=True)
        self.characters += len(text)
        return text


def _continues(pending: bytes, byte: int) -> bool:
    """Whether ``byte`` continues or completes the character that ``pending`` begins."""
    # The incremental decoder would wait for the end of a surrogate, which is not a character.
    together = pending + bytes([byte])
    try:
        together.decode()
    except UnicodeDecodeError as error:
        return error.end == len(together)  # only more bytes could tell
    return True


class StopMatcher:
    """Finds stop strings, character by character.

    The stop that completes first wins. If several complete with the same character, the longest
    of them wins. Only text that can still become a stop is held back: the longest end of the text
    with which a stop begins. With ``include`` the stop that was met is given out, too.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._include = include
        self._stops = [(stop, FailureTable(stop)) for stop in stops]
        self._matched = [0] * len(stops)
        self._held = ""
        self.met = ""

    def feed(self, text: str, *, counts: bool = True) -> tuple[str, bool]:
        """Returns the text that can be given out now, and whether a stop was met.

        After a stop there is no more text. A stop that completes in text that does not count is
        ordinary text.
        """
        if not self._stops:
            return text, False
        whole = self._held + text
        for at, character in enumerate(text, len(self._held) + 1):
            longest = 0
            for i, (stop, table) in enumerate(self._stops):
                state = self._matched[i]
                while state and stop[state] != character:
                    state = table.border(state)
                state += stop[state] == character
                if state == len(stop):
                    if counts:
                        longest = max(longest, state)
                    else:
                        state = table.border(state)
                self._matched[i] = state
            if longest:
                self._held = ""
                self.met = whole[at - longest : at]
                return whole[: at if self._include else at - longest], True
        hold = max(self._matched)
        self._held = whole[len(whole) - hold :]
        return whole[: len(whole) - hold], False

    def flush(self) -> str:
        """Returns the text that was held back and did not become a stop."""
        held, self._held = self._held, ""
        return held


class FailureTable:
    """The failure function of Knuth, Morris and Pratt: the longest proper border of each prefix.

    It is filled only as far as a match has come, so an unmatched end of a stop costs nothing.
    """

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self._borders = [0, 0]

    def border(self, length: int) -> int:
        """Returns the length of the longest proper border of the first ``length`` characters."""
        stop, borders = self._stop, self._borders
        while len(borders) <= length:
            character = stop[len(borders) - 1]
            border = borders[-1]
            while border and stop[border] != character:
                border = borders[border]
            borders.append(border + (stop[border] == character))
        return borders[length]
