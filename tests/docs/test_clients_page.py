"""docs/clients.md says what the tests of clients try; ``clients.page`` writes its tables."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from clients.catalog import ROOT, TriedClient, catalog
from clients.page import PAGE, with_tables


def functions(file: Path) -> list[str]:
    """The names of a file's functions."""
    return [
        node.name
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
    ]  # fmt: skip


def test_the_page_has_the_tables() -> None:
    assert PAGE.read_text() == with_tables(PAGE.read_text())


@pytest.mark.parametrize("client", catalog().client, ids=lambda client: client.name)
def test_a_row_has_its_test(client: TriedClient) -> None:
    """The test is there, and the version stands in one place."""
    file, _, name = client.test.partition("::")
    assert name in functions(ROOT / file)
    assert bool(client.version) != bool(client.pinned_by)
    assert client.tried


def test_every_test_of_a_client_has_a_row() -> None:
    named = {client.test for client in catalog().client}
    found = {
        f"{file.relative_to(ROOT)}::{name}"
        for file in (ROOT / "tests" / "clients").glob("test_*.py")
        for name in functions(file)
        if name.startswith("test_")
    }
    assert len(found) > 10
    assert found <= named
