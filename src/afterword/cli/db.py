"""``afterword db``: upgrades, checks and copies the ledger's database."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import rich_click as click

from afterword.cli.database import database
from afterword.cli.keys import ledger_flags, ledger_settings
from afterword.cli.ledger import data_folder
from afterword.ledger.audit import check
from afterword.ledger.database import REVISION, backup, revision_of, upgrade
from afterword.ledger.folder import journals_in
from afterword.ledger.orphans import unreadable


@click.group(short_help="Upgrade, check and copy the ledger's database.")
def db() -> None:
    """The ledger's database: upgrade, check or copy it."""


@db.command("upgrade", short_help="Bring the tables up to date.")
@ledger_flags
def upgrade_tables(**given: Any) -> None:  # noqa: ANN401 - the ledger's flags
    """Make the tables, or upgrade them to this version: all steps or none."""
    with database(ledger_settings(given), prepared=False) as engine:
        before = revision_of(engine)
        upgrade(engine)
    click.echo(f"the ledger is at step {REVISION} (it was at {before or 'none'})")


@db.command("check", short_help="Look for damage and contradictions.")
@ledger_flags
def check_tables(**given: Any) -> None:  # noqa: ANN401 - the ledger's flags
    """Check the file, the tables, the sums against their records, and the journals.

    Says what was set aside because it could not be read or kept. Exits with status 1 if
    something is wrong.
    """
    settings = ledger_settings(given)
    with database(settings, prepared=False, made=False) as engine:
        wrong = check(engine) + unreadable(journals_in(data_folder(settings)))
    for line in wrong:
        click.echo(line)
    if wrong:
        sys.exit(1)
    click.echo("the ledger is whole")


@db.command("backup", short_help="Copy the ledger to a file.")
@click.argument("file", type=Path)
@ledger_flags
def backup_tables(file: Path, **given: Any) -> None:  # noqa: ANN401 - the ledger's flags
    """Copy a SQLite ledger to FILE while servers go on. PostgreSQL has pg_dump."""
    with database(ledger_settings(given), prepared=False, made=False) as engine:
        backup(engine, file)
    click.echo(f"copied to {file}")
