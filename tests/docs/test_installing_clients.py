"""Clients are installed once, and an installation that breaks off is made anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients import installing
from clients.catalog import TriedClient, catalog
from clients.installing import NotInstalledError, everything, node_client, python_client


class Installer:
    """In place of a registry's program. ``breaks`` says with what the next ones end."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.breaks: list[BaseException] = []

    def __call__(self, folder: Path, client: TriedClient) -> None:
        assert not folder.exists()
        self.asked.append(client.package)
        folder.mkdir(parents=True)
        if self.breaks:
            raise self.breaks.pop()


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    made = Installer()
    monkeypatch.setattr(installing, "FOLDER", tmp_path / "clients")
    monkeypatch.setattr(installing, "_failures", {})
    monkeypatch.setattr(installing, "_install_for_python", made)
    monkeypatch.setattr(installing, "_install_for_node", made)
    return made


def test_a_client_is_installed_once(installer: Installer, tmp_path: Path) -> None:
    for _ in range(2):
        assert python_client("llm") == tmp_path / "clients" / "llm" / "bin"
        node_client("@langchain/openai")
    assert installer.asked == ["llm", "@langchain/openai (npm)"]


def test_an_installation_that_broke_off_is_made_anew(installer: Installer) -> None:
    installer.breaks = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        python_client("llm")
    python_client("llm")
    assert len(installer.asked) == 2


def test_a_client_that_cannot_be_installed_skips_its_tests_and_is_tried_once(
    installer: Installer,
) -> None:
    installer.breaks = [NotInstalledError("no network")]
    for _ in range(3):
        with pytest.raises(pytest.skip.Exception, match="no network"):
            node_client("@continuedev/openai-adapters")
    assert len(installer.asked) == 1


def test_everything_is_what_the_tests_install() -> None:
    named = {client.package for client in catalog().client if client.is_own}
    files = {client.pinned_by for client in catalog().client if client.pinned_by.endswith(".txt")}
    # The tests' own environment is there.
    assert set(everything()) == named | files - {"requirements/test.txt"}
