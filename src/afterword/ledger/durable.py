"""Writes records so that one that the database refuses holds up no other.

It is set aside with the reason. An error that says nothing about a record, as of a database that
is away, is the caller's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

import sqlalchemy as sa

from afterword.core.account import UsageRecord
from afterword.core.faults import in_one_line
from afterword.ledger import budgets
from afterword.ledger.database import reason
from afterword.ledger.set_aside import AsideEntry, SetAside, of_record
from afterword.ledger.soundness import fault_of

_log = logging.getLogger(__name__)

Begin: TypeAlias = Callable[[], AbstractContextManager[sa.Connection]]
"""Opens a transaction."""
_VALUE_ERRORS = (OverflowError, ValueError, TypeError)
_REFUSALS = (sa.exc.DataError, sa.exc.IntegrityError)
# Of PostgreSQL: raised by a trigger; a value too long for an index.
_REFUSING_STATES = ("P0", "54")


def refusal(error: Exception) -> str | None:
    """Returns why a database refuses a value, or None if the error is about something else."""
    if isinstance(error, sa.exc.DBAPIError):
        state = str(getattr(error.orig, "sqlstate", "") or "")
        if isinstance(error, _REFUSALS) or state.startswith(_REFUSING_STATES):
            return f"the database refuses it: {reason(error)}"
        return None
    if isinstance(error, _VALUE_ERRORS) or (
        isinstance(error, sa.exc.StatementError) and isinstance(error.orig, _VALUE_ERRORS)
    ):
        return f"the database refuses it: {in_one_line(error)}"
    return None


def write_each(
    begin: Begin,
    records: Sequence[UsageRecord],
    aside: SetAside,
    holding: Sequence[str] | None = None,
) -> int:
    """Write records as ``budgets.write`` does; set aside those that cannot be kept.

    The reservations of these come back. Returns how many records were new. Raises ``OSError`` if
    one cannot be set aside; then it is neither written nor given back.
    """
    faults = [(record, fault_of(record)) for record in records]
    sound = [record for record, fault in faults if fault is None]
    refused = [of_record(record, fault) for record, fault in faults if fault is not None]
    ids = [record.id for record in records] if holding is None else list(holding)
    unsound = {entry.source for entry in refused}
    try:
        with begin() as connection:
            new = budgets.write(connection, sound, [one for one in ids if one not in unsound])
        left = unsound
    except Exception as error:
        if refusal(error) is None:
            raise
        new, more = _write_singly(begin, sound, frozenset(ids))
        refused += more
        left = {*ids}.difference(record.id for record in sound) | {one.source for one in refused}
    if refused:
        aside.add(refused)
    for entry in refused:
        _log.error("%s: its record is set aside in %s: %s", entry.source, aside.file, entry.reason)
    held = [one for one in ids if one in left]
    if held:
        with begin() as connection:
            budgets.write(connection, [], held)
    return new


def _write_singly(
    begin: Begin, records: Sequence[UsageRecord], holding: frozenset[str]
) -> tuple[int, list[AsideEntry]]:
    """Returns how many records were new, and those that the database refuses."""
    new, refused = 0, list[AsideEntry]()
    for record in records:
        try:
            with begin() as connection:
                new += budgets.write(
                    connection, [record], [record.id] if record.id in holding else []
                )
        except Exception as error:
            why = refusal(error)
            if why is None:
                raise
            refused.append(of_record(record, why))
    return new, refused
