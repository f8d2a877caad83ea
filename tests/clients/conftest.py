"""A server with default settings, and what it says over plain HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.running import Plain
from e2e.process import MODEL, Server, serving
from support.tiny_gguf import make_gguf

CODER = "coder"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, embedded_model: Path) -> Iterator[Server]:
    """The embedded model, and one with tokens for fill-in-the-middle."""
    folder = tmp_path_factory.mktemp("clients")
    coder = make_gguf(folder / "coder.gguf", "qwen", context=8192)
    models = ("--model", f"{MODEL}={embedded_model}", "--model", f"{CODER}={coder}")
    with serving(folder / "stderr", *models, "--slots", "4") as running:
        yield running


@pytest.fixture(scope="session")
def plain(server: Server) -> Plain:
    return Plain(server.url)
