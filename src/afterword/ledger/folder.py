"""The data folder: where the database file and the journals are."""

from __future__ import annotations

import os
from pathlib import Path

from afterword.core.errors import ConfigError


def database_file(folder: Path) -> Path:
    """Returns the file of a ledger whose database is not given."""
    return folder / "ledger.db"


def has_database(folder: Path) -> bool:
    """Whether that file is there and this process may see it."""
    return os.path.exists(database_file(folder))  # noqa: PTH110 - Path.exists raises for a closed folder


def journals_in(folder: Path) -> Path:
    """Returns the folder of the journals of all processes on a data folder."""
    return folder / "journal"


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner may open. Raises ``ConfigError``."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: the ledger cannot be kept here (--data-dir): {error.strerror}"
        ) from error
