"""The ledger's database for a command, whether servers run or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from afterword.core.errors import ConfigError
from afterword.ledger.database import (
    REVISION,
    Database,
    connect,
    open_database,
    parse_url,
    reason,
    revision_of,
    sqlite_url,
)
from afterword.ledger.folder import database_file, has_database, journals_in, make_folder
from afterword.ledger.orphans import copy_live_journals, reap_journals
from afterword.ledger.other_journals import any_journal
from afterword.ledger.process import KEYLESS


@contextmanager
def open_for_command(
    folder: Path, database: str | None, *, prepared: bool, made: bool = True
) -> Iterator[Database]:
    """The database, with what keyless servers on this data folder have recorded.

    ``prepared`` makes its tables if there are none, and refuses those of another version. ``made``
    makes its file. Raises ``ConfigError``, also for errors of the database in the context.
    """
    journals = journals_in(folder)
    recorded = database is None and any_journal(journals, of=KEYLESS)
    try:
        if prepared or (recorded and not has_database(folder)):
            engine = open_database(folder, database, patient=True)
        else:
            url = parse_url(database) if database else sqlite_url(database_file(folder))
            if not made:
                _refuse_missing(url)
            make_folder(folder)
            engine = connect(url, patient=True)
        try:
            if recorded and revision_of(engine) == REVISION:
                _take_over(engine, journals)
            yield engine
        finally:
            engine.dispose()
    except SQLAlchemyError as error:
        raise ConfigError(f"the ledger's database cannot be used: {reason(error)}") from error


def _refuse_missing(url: URL) -> None:
    """Raises ``ConfigError`` for a file that is not there: its name may be a mistake."""
    if url.get_backend_name() == "sqlite" and not os.path.exists(url.database or ""):  # noqa: PTH110 - Path.exists raises for a closed folder
        raise ConfigError(f"{url.database}: there is no ledger")


def _take_over(engine: Database, journals: Path) -> None:
    """Write what keyless servers recorded. Raises ``ConfigError`` if it cannot be set aside."""
    try:
        reap_journals(engine.begin, journals, of=KEYLESS)
        # Running servers notice a new file only in a moment.
        copy_live_journals(engine.begin, journals)
    except OSError as error:
        raise ConfigError(f"{journals}: cannot be written to: {error.strerror}") from error
