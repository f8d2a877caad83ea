"""Ends of a text that depend on its lines, as editors want them (F5)."""

from __future__ import annotations


class IndentLimit:
    """Cuts a text at its first line that is indented less than ``least`` characters.

    The first line has no limit: it continues the client's. Spaces and tabs count. The cut is
    behind the line's spaces. How the text is split does not matter. Source: llama-server's
    ``n_indent``, where an empty line ends the text, too.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._indent: int | None = None

    def feed(self, text: str) -> tuple[str, bool]:
        """Returns the text up to the cut, and whether there is a cut. No text follows a cut."""
        if not self._least:
            return text, False
        for at, character in enumerate(text):
            if self._indent is not None:
                if character in " \t":
                    self._indent += 1
                    continue
                if self._indent < self._least:
                    return text[:at], True
            self._indent = 0 if character == "\n" else None
        return text, False
