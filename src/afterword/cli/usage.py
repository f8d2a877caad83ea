"""``afterword usage``: what keys, models, users and days used, for people and programs."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import rich_click as click

from afterword.cli.database import database, key_store
from afterword.cli.keys import ledger_flags, ledger_settings
from afterword.cli.terminal import bare_table, plain, print_table
from afterword.core.account import UsageBy, UsageQuery, UsageRecord, UsageSum
from afterword.core.moments import parse_moment
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
        if given[name]
    }
    with database(settings) as engine:
        key_id = key_store(engine).find(given["key"]).id if given["key"] else None
        query = UsageQuery(**moments, key_id=key_id)
        if given["requests"]:
            rows: Iterator[UsageSum | UsageRecord] = _records(engine, query)
        else:
            rows = iter(UsageStore(engine).sums(given["by"], query))
        if given["as_json"]:
            for row in rows:
                click.echo(msgspec.json.encode(row))
        elif given["as_csv"]:
            _write_csv(rows, UsageRecord if given["requests"] else UsageSum)
        else:
            _write_table(rows, given["by"], UsageRecord if given["requests"] else UsageSum)


def _records(engine: Database, query: UsageQuery) -> Iterator[UsageRecord]:
    after = ""
    store = UsageStore(engine)
    while page := store.requests(query, after=after, most=_PAGE):
        yield from page
        after = page[-1].id


def _write_csv(rows: Iterator[UsageSum | UsageRecord], kind: type[UsageSum | UsageRecord]) -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(kind.__struct_fields__)
    for row in rows:
        # A spreadsheet reads a text that begins like this as a formula.
        out.writerow(
            f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value != "-"
            else value
            for value in msgspec.structs.astuple(row)
        )  # fmt: skip


def _write_table(
    rows: Iterator[UsageSum | UsageRecord], by: UsageBy, kind: type[UsageSum | UsageRecord]
) -> None:
    names = [name.upper().replace("_", " ") for name in kind.__struct_fields__]
    if kind is UsageSum:
        names[0] = by.upper()
    table = bare_table()
    for at, name in enumerate(names):
        table.add_column(name, justify="right" if at and kind is UsageSum else "left")
    totals = [0] * (len(names) - 1)
    count = 0
    for row in rows:
        count += 1
        first, *numbers = msgspec.structs.astuple(row)
        table.add_row(plain(str(first)), *(plain(_cell(value)) for value in numbers))
        if kind is UsageSum:
            totals = [total + number for total, number in zip(totals, numbers, strict=True)]
    if kind is UsageSum and count > 1:
        table.add_row("total", *map(_cell, totals))
    print_table(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
