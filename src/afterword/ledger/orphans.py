"""Journals that other processes left in a folder, written to the database."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import msgspec
import sqlalchemy as sa

from afterword.ledger import budgets
from afterword.ledger.journal import orphaned_journals, settled_records
from afterword.ledger.process import KEYLESS
from afterword.ledger.tables import processes

Begin = Callable[[], AbstractContextManager[sa.Connection]]
"""Opens a transaction."""


class Reaped(msgspec.Struct, frozen=True):
    """What a dead process left: records that were new, those of them without an end, claims."""

    records: int
    lost: int
    reservations: int


def reap_journals(begin: Begin, journals: Path, *, of: str = "") -> list[Reaped]:
    """Write the journals of dead processes and remove them; give back what they had reserved.

    ``of`` is how the process ids begin.
    """
    with ExitStack() as opened:
        found = orphaned_journals(journals, of=of)
        for orphan in found:
            opened.callback(orphan.close)
        reaped = []
        for orphan in found:
            records = orphan.records()
            with begin() as connection:
                new = budgets.write(connection, records)
                given_back = budgets.give_back(connection, orphan.process_id)
            orphan.remove()
            lost = sum(record.status == "lost" for record in records)
            reaped.append(Reaped(new, lost, given_back))
        return reaped


def copy_live_journals(begin: Begin, journals: Path) -> None:
    """Write what keyless servers have recorded that have not found the database yet.

    They write the same records again, to no effect.
    """
    with begin() as connection:
        # After its first heartbeat a server still has to write what was pending.
        found_it = processes.c.beats > 1
        known = connection.scalars(sa.select(processes.c.id).where(found_it)).all()
        budgets.write(connection, settled_records(journals, of=KEYLESS, but=known), ())
