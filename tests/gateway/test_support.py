"""The table of features in the documentation equals the dialects'."""

from __future__ import annotations

from pathlib import Path

from afterword.gateway.address import DIALECTS as NAMES
from afterword.gateway.dialects.dialect import FEATURES
from afterword.gateway.dialects.registry import DIALECTS
from afterword.gateway.dialects.support import ROWS, support_table

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "gateway.md"


def test_the_table_is_the_dialects() -> None:
    table = support_table(list(DIALECTS.values()))
    assert table in PAGE.read_text(), f"docs/guides/gateway.md should have:\n\n{table}"


def test_every_dialect_and_feature_is_in_it() -> None:
    assert list(DIALECTS) == list(NAMES)
    assert set(FEATURES) <= set(ROWS)
    for dialect in DIALECTS.values():
        assert set(dialect.lacks) | set(dialect.notes) <= set(ROWS)
