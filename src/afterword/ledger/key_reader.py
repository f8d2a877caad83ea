"""Keeps a keyring as the keys in the database are. A change of a key costs what it changes."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from afterword.ledger.keyring import HeldKey, Keyring
from afterword.ledger.keys import (
    KeyChange,
    any_key,
    changed_keys,
    keys_behind,
    keys_of,
    last_change,
)

_SLICE_KEYS = 500
"""Keys of one look. Each is taken out of the database under the interpreter's lock."""


class KeyReader:
    """Reads keys in slices; belongs to the ledger writer's thread.

    Each look takes in what has changed. All keys are read at first, and again if the list of
    changes does not lead on from what is known: slice by slice, in the order of their ids, while
    changes go on to be taken in. A key is always read as it is now, so the order does not matter.
    """

    def __init__(self) -> None:
        self.keyring = Keyring(needed=True)
        self._known: KeyChange | None = None
        self._reading = 0
        self._after: str | None = None
        self.whole = False

    def look(self, connection: sa.Connection) -> None:
        """Take in one slice of what is new. All of it is taken in when ``whole`` is true."""
        last = last_change(connection)
        if last != self._known:
            self._take_changes(connection, last)
        if self._after is not None:
            self._read_on(connection, self._after)
        self.whole = self._known == last and self._after is None

    def _take_changes(self, connection: sa.Connection, last: KeyChange) -> None:
        known = self._known
        found = known and changed_keys(connection, known, last, most=_SLICE_KEYS)
        if found:
            changed, taken = found
            self._put(keys_of(connection, changed, reading=self._reading))
        else:
            self._reading += 1
            self._after, taken = "", last
        # A server that has seen a key needs one, also if the ledger is emptied.
        if known is None or not self.keyring.needed:
            self.keyring.needed = any_key(connection)
        self._known = taken

    def _read_on(self, connection: sa.Connection, after: str) -> None:
        found = keys_behind(connection, after, most=_SLICE_KEYS, reading=self._reading)
        self._put(found)
        if len(found) == _SLICE_KEYS:
            *_, self._after = found
        else:
            self.keyring.keep_only(self._reading)
            self._after = None

    def _put(self, found: Mapping[str, HeldKey | None]) -> None:
        for key_id, held in found.items():
            self.keyring.put(key_id, held)
