"""The data folder: where the database file and the journals are."""

from __future__ import annotations

import os
from pathlib import Path

from afterword.core.errors import ConfigError


def database_file(folder: Path) -> Path:
    """The database of a ledger that is given none."""
    return folder / "ledger.db"


def has_database(folder: Path) -> bool:
    """Whether that file is there, as far as this process may see."""
    return os.path.exists(database_file(folder))  # noqa: PTH110 - Path.exists raises in a folder that is closed


def journals_in(folder: Path) -> Path:
    """The folder of the journals of all processes that share a data folder."""
    return folder / "journal"


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner may open. Raises ``ConfigError``."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: the ledger cannot be kept here (--data-dir): {error.strerror}"
        ) from error
