"""The embedded model's file."""

from __future__ import annotations

from pathlib import Path

from afterword.cli.terminal import Terminal
from afterword.config import EMBEDDED_SOURCE
from afterword.models.source import parse_source
from afterword.models.store import Store


def embedded_file() -> Path:
    """Its file, fetched if it is not here."""
    return Store(None, Terminal()).fetch(parse_source(EMBEDDED_SOURCE)).path
