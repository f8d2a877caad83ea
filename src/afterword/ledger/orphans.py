"""Journals that other processes left in a folder, written to the database."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import msgspec
import sqlalchemy as sa

from afterword.ledger import budgets
from afterword.ledger.durable import Begin, write_each
from afterword.ledger.other_journals import (
    JournalContents,
    OrphanedJournal,
    orphaned_journals,
    settled_records,
    strange,
)
from afterword.ledger.process import KEYLESS
from afterword.ledger.set_aside import SetAside, sentences
from afterword.ledger.tables import processes

_log = logging.getLogger(__name__)


class Reaped(msgspec.Struct, frozen=True):
    """What a dead process left: records that were new, those of them without an end, claims."""

    records: int
    lost: int
    reservations: int


def reap_journals(begin: Begin, journals: Path, *, of: str = "") -> list[Reaped]:
    """Write the journals of dead processes and remove them; give back what they had reserved.

    ``of`` is how the process ids begin. What cannot be read or kept is set aside. A journal whose
    file cannot be read at all stays.
    """
    aside = SetAside(journals)
    with ExitStack() as opened:
        found = orphaned_journals(journals, of=of)
        for orphan in found:
            opened.callback(orphan.close)
        reaped = []
        for orphan in found:
            contents = _contents(orphan)
            if contents is None:
                continue
            aside.add(contents.unread)
            for entry in contents.unread:
                _log.error("%s is set aside in %s: %s", entry.source, aside.file, entry.reason)
            new = write_each(begin, contents.records, aside)
            with begin() as connection:
                given_back = budgets.give_back(connection, orphan.process_id)
            orphan.remove()
            lost = sum(record.status == "lost" for record in contents.records)
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
    write_each(begin, settled_records(journals, of=KEYLESS, but=known), SetAside(journals), ())


def unreadable(journals: Path) -> list[str]:
    """Returns what is set aside, and what cannot be read of dead processes' journals."""
    aside = SetAside(journals)
    try:
        found = sentences(aside.entries(), aside.file)
    except OSError as error:
        found = [f"{aside.file} cannot be read: {error.strerror}"]
    found += [
        f"{name} in {journals} is no journal that can be opened" for name in strange(journals)
    ]
    for orphan in orphaned_journals(journals):
        try:
            unread = orphan.read().unread
        except OSError as error:
            found.append(f"{orphan.files[0][0]} cannot be read: {error.strerror}")
        else:
            found += [f"{entry.source} cannot be read: {entry.reason}" for entry in unread]
        orphan.close()
    return found


def _contents(orphan: OrphanedJournal) -> JournalContents | None:
    try:
        return orphan.read()
    except OSError as error:
        _say(f"{orphan.files[0][0].name} cannot be read and stays: {error.strerror}")
        return None


@cache
def _say(text: str) -> None:
    """Log an error once: journals are looked at every few seconds."""
    _log.error("%s", text)
