"""Settings become the ledger's database, for commands."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager

from afterword.cli.ledger import data_folder
from afterword.config import Settings
from afterword.ledger.command import open_for_command
from afterword.ledger.database import Database
from afterword.ledger.keys import KeyStore


def database(settings: Settings, *, prepared: bool = True) -> AbstractContextManager[Database]:
    """The database that the settings name; see ``open_for_command``."""
    return open_for_command(data_folder(settings), settings.database, prepared=prepared)


def key_store(engine: Database) -> KeyStore:
    """The keys of a database."""
    return KeyStore(engine, clock=time.time, entropy=os.urandom)
