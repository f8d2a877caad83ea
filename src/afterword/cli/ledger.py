"""Settings become the options of a ledger, and the places where it is. Imports no database."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from afterword.config import Settings
from afterword.ledger.access import Clocks, Entrance, Policy
from afterword.ledger.folder import database_file, journals_in
from afterword.ledger.open_ledger import LedgerOptions
from afterword.ledger.presence import Presence
from afterword.ledger.process import KEYLESS, ProcessIdentity

_PASSWORD = re.compile(r"(?<=//)([^:@/?]*:).*(?=@)")
_PASSWORD_IN_QUERY = re.compile(r"(?<=[?&])([a-z_]*password=)[^&]*", re.IGNORECASE)
CLOCKS = Clocks(time.monotonic, time.time)


def data_folder(settings: Settings) -> Path:
    """The folder of the ledger's file and its journals."""
    given = settings.data_dir
    return Path(given) if given else platformdirs.user_data_path("afterword")


def without_password(url: str) -> str:
    """Returns a URL as people may see it."""
    return _PASSWORD_IN_QUERY.sub(r"\1***", _PASSWORD.sub(r"\1***", url))


def ledger_place(settings: Settings) -> str:
    """Returns the ledger's file, or the address of its database without a password."""
    url = settings.database
    if url is None:
        return str(database_file(data_folder(settings)).absolute())
    if url.startswith("sqlite:///"):
        return str(Path(url.removeprefix("sqlite:///").partition("?")[0]).absolute())
    return without_password(url)


def places(settings: Settings) -> Iterator[tuple[str, str]]:
    """What a ledger is made of, and where it is."""
    yield "ledger", ledger_place(settings)
    yield "journal", str(journals_in(data_folder(settings)).absolute())


def ledger_options(settings: Settings, entrance: Entrance = "keys") -> LedgerOptions:
    """The settings of the ledger."""
    return LedgerOptions(
        folder=data_folder(settings),
        database=settings.database,
        redis=settings.redis,
        journal_bytes=settings.journal_mb << 20,
        presence=Presence((*settings.models, *settings.effective_aliases())),
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
