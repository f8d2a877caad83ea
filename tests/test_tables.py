"""Tables of the documents are those of the code."""

from __future__ import annotations

import pytest

from afterword.gateway.address import DIALECTS as NAMES
from afterword.gateway.dialects.dialect import FEATURES
from afterword.gateway.dialects.registry import DIALECTS
from tables import DOCS, PAGES, ROWS, with_tables


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_the_tables_of_the_code(name: str) -> None:
    page = (DOCS / name).read_text()
    assert page == with_tables(page), "run scripts/tables.py"


def test_every_dialect_and_feature_is_in_a_table() -> None:
    assert list(DIALECTS) == list(NAMES)
    assert set(FEATURES) <= set(ROWS)
    for dialect in DIALECTS.values():
        assert set(dialect.lacks) | set(dialect.notes) <= set(ROWS)
