"""Writes the tables of docs/clients.md: ``PYTHONPATH=tests .venv/bin/python -m clients.page``."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from types import ModuleType

from clients.catalog import ROOT, clients_table

PAGE = ROOT / "docs" / "clients.md"
_REPLAYED = ROOT / "tests" / "contract" / "test_clients.py"
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _bodies() -> ModuleType:
    """The tests that replay bodies, as a module."""
    spec = importlib.util.spec_from_file_location("replayed_clients", _REPLAYED)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tables() -> Mapping[str, str]:
    """Every table by its name."""
    bodies = _bodies()
    refused = [
        f"- {name}: `{field}`"
        for name, (body, field, _) in bodies.OTHERS.items()
        if field in body
    ]  # fmt: skip
    return {
        "clients": clients_table(),
        "replayed": "\n".join(f"- {name}" for name in bodies.CLIENTS),
        "refused": "\n".join(refused),
    }


def with_tables(page: str) -> str:
    """A page with its tables as the tests have them."""
    made = tables()
    return _TABLE.sub(lambda found: f"{found[1]}\n{made[found[2]]}\n\n{found[3]}", page)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
