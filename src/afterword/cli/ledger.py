"""Settings become the options of a ledger. Imports no database."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import platformdirs

from afterword.config import Settings
from afterword.ledger.access import Clocks, Entrance, Policy
from afterword.ledger.open_ledger import LedgerOptions
from afterword.ledger.process import KEYLESS, ProcessIdentity

CLOCKS = Clocks(time.monotonic, time.time)


def data_folder(settings: Settings) -> Path:
    """The folder of the ledger's file and its journals."""
    given = settings.data_dir
    return Path(given) if given else platformdirs.user_data_path("afterword")


def ledger_options(settings: Settings, entrance: Entrance = "keys") -> LedgerOptions:
    """The settings of the ledger."""
    return LedgerOptions(
        folder=data_folder(settings),
        database=settings.database,
        redis=settings.redis,
        journal_bytes=settings.journal_mb << 20,
        policy=Policy(
            entrance=entrance,
            serve_without_database=settings.database_down == "serve",
            sync_always=settings.journal_sync == "always",
        ),
    )


def identity(*, keyless: bool) -> ProcessIdentity:
    """A new name for this process; ``keyless`` if it begins without a database."""
    kind = KEYLESS if keyless else "p"
    return ProcessIdentity(f"{kind}{os.urandom(6).hex()}", platform.node(), os.getpid())
