"""``afterword usage``: what keys, models, users and days used, for people and programs."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import rich_click as click

from afterword.cli.database import database, key_store
from afterword.cli.keys import ledger_flags, ledger_settings
from afterword.cli.terminal import print_rows, write_utf8
from afterword.core.account import UsageBy, UsageQuery, UsageRecord, UsageSum
from afterword.core.moments import iso, parse_moment
from afterword.ledger.database import Database
from afterword.ledger.store import UsageStore

_PAGE = 1000


@click.command(short_help="Show what was used.")
@click.option("--by", type=click.Choice(["key", "model", "user", "day"]), default="key",
              show_default=True, help="Add up the tokens of each.")  # fmt: skip
@click.option("--since", metavar="WHEN", help="From 2026-11-01, 2026-11-01T12:00 (UTC) or 7d ago.")
@click.option("--until", metavar="WHEN", help="Before this moment, written like --since.")
@click.option("--key", metavar="NAME", help="Only the requests of this key.")
@click.option("--requests", is_flag=True, help="List the requests; add nothing up.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object on each line.")
@ledger_flags
def usage(**given: Any) -> None:  # noqa: ANN401 - flags
    """Show tokens by key, model, user or day, or every request with its answer's id.

    A server writes its records within a second.
    """
    settings = ledger_settings(given)
    if given["as_csv"] and given["as_json"]:
        raise click.UsageError("--csv or --json, not both")
    moments = {
        name: parse_moment(given[name], now_s=time.time(), param=name)
        for name in ("since", "until")
        if given[name] is not None
    }
    with database(settings) as engine:
        key_id = key_store(engine).find(given["key"]).id if given["key"] is not None else None
        query = UsageQuery(**moments, key_id=key_id)
        if given["requests"]:
            rows: Iterable[UsageSum | UsageRecord] = _records(engine, query)
        else:
            sums = UsageStore(engine).sums(given["by"], query)
            rows = sums if given["as_json"] or given["as_csv"] else _with_total(sums)
        if given["as_json"]:
            for row in rows:
                click.echo(msgspec.json.encode(row))
        elif given["as_csv"]:
            _write_csv(rows, UsageRecord if given["requests"] else UsageSum)
        else:
            _write_table(rows, None if given["requests"] else given["by"])


def _records(engine: Database, query: UsageQuery) -> Iterator[UsageRecord]:
    after = ""
    store = UsageStore(engine)
    while page := store.requests(query, after=after, most=_PAGE):
        yield from page
        after = page[-1].id


def _write_csv(rows: Iterable[UsageSum | UsageRecord], kind: type[UsageSum | UsageRecord]) -> None:
    write_utf8()
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(kind.__struct_fields__)
    for row in rows:
        # A spreadsheet reads a text that begins like this as a formula.
        out.writerow(
            f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value != "-"
            else value
            for value in msgspec.structs.astuple(row)
        )  # fmt: skip


def _write_table(rows: Iterable[UsageSum | UsageRecord], by: UsageBy | None) -> None:
    """Print sums by ``by``, or records if it is None."""
    kind = UsageRecord if by is None else UsageSum
    names = [name.upper().replace("_", " ") for name in kind.__struct_fields__]
    if by is not None:
        names[0] = by.upper()
    print_rows(names, map(_cells, rows), numbers=by is not None)


def _with_total(sums: list[UsageSum]) -> list[UsageSum]:
    """Returns several sums with their total."""
    if len(sums) < 2:
        return sums
    names = UsageSum.__struct_fields__[1:]
    total = {name: sum(getattr(one, name) for one in sums) for name in names}
    return [*sums, UsageSum(group="total", **total)]


def _cells(row: UsageSum | UsageRecord) -> Sequence[str]:
    first, *others = msgspec.structs.astuple(row)
    cells = [str(first), *map(_cell, others)]
    if isinstance(row, UsageRecord):
        cells[row.__struct_fields__.index("started_at")] = iso(row.started_at)
    return cells


def _cell(value: str | float | bool | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, str) else f"{value:,.0f}"
