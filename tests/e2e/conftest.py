"""Servers that tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.process import Server, serving
from tiny_gguf import make_gguf


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", context=8192)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, embedded_model: Path) -> Iterator[Server]:
    """The embedded model, as ``afterword serve`` without options serves it, on fewer slots."""
    with serving(tmp_path_factory.mktemp("e2e") / "stderr", "--slots", "4") as running:
        yield running
