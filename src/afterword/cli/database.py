"""Settings become the ledger's database, for commands."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

from afterword.cli.ledger import data_folder
from afterword.config import Settings
from afterword.ledger.alive import alive_folder, presences
from afterword.ledger.command import open_for_command
from afterword.ledger.database import Database
from afterword.ledger.folder import journals_in
from afterword.ledger.keys import KeyStore


def database(
    settings: Settings, *, prepared: bool = True, made: bool = True
) -> AbstractContextManager[Database]:
    """The database that the settings name; see ``open_for_command``."""
    return open_for_command(data_folder(settings), settings.database, prepared=prepared, made=made)


def key_store(engine: Database) -> KeyStore:
    """The keys of a database."""
    return KeyStore(engine, clock=time.time, entropy=os.urandom)


NO_MODEL = "none"
"""What the documents call a model that nobody serves: a key for it can complete nothing."""


def unknown_models(
    engine: Database, settings: Settings, models: Sequence[str]
) -> list[tuple[str, str]]:
    """Returns the models that nobody serves, each with what is served instead.

    Running servers of this machine say what they serve; without them the settings do.
    """
    running = presences(alive_folder(engine, journals_in(data_folder(settings))))
    served = {name for presence in running for name in presence.serves}
    where = "running servers have"
    if not running:
        served = {*settings.models, *settings.effective_aliases()}
        where = "no server runs; the settings have"
    if "*" in served:
        return []
    there = f"{where} {', '.join(sorted(served))}"
    return [(model, there) for model in models if model not in served and model != NO_MODEL]
