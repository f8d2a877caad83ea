"""Fixtures that several folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The file of the embedded model, fetched by ``make install``."""
    return Path(os.environ["AFTERWORD_TEST_MODEL"])
