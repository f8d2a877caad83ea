"""Writes the tables of docs/ that are made: settings, what each dialect can do, all decisions.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. A test holds the documents to
it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from afterword.cli.options import PANELS, settings_table
from afterword.gateway.dialects.registry import DIALECTS
from afterword.gateway.dialects.support import support_table

DOCS = Path(__file__).resolve().parent.parent / "docs"
DECISIONS = DOCS / "decisions"
PAGES = ("configuration.md", "guides/gateway.md", "decisions/README.md")
_TABLE = re.compile(r"(<!-- table: ([^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables() -> Mapping[str, str]:
    """Every table by its name."""
    return {
        **{panel: settings_table(panel) for panel in PANELS},
        "dialects": support_table(list(DIALECTS.values())),
        "decisions": decisions_table(),
    }


def decisions_table() -> str:
    """A row for each decision, from the first line of its page."""
    rows = ["| number | decision |", "| --- | --- |"]
    for page in sorted(DECISIONS.glob("[0-9]*.md")):
        number, _, title = page.read_text().partition("\n")[0].removeprefix("# ").partition(" ")
        rows.append(f"| [{number}]({page.name}) | {title} |")
    return "\n".join(rows)


def with_tables(page: str) -> str:
    """A page with its tables as the code has them."""
    made = tables()
    return _TABLE.sub(lambda found: f"{found[1]}\n{made[found[2]]}\n\n{found[3]}", page)


def main() -> None:
    """Write the pages."""
    for name in PAGES:
        page = DOCS / name
        page.write_text(with_tables(page.read_text()))


if __name__ == "__main__":
    main()
