"""Whether a ledger's database is whole, and its sums agree with its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from afterword.core.account import PERIODS
from afterword.ledger.database import REVISION, reading, revision_of
from afterword.ledger.periods import period_of
from afterword.ledger.tables import metadata, reservations, spending, usage


def check(engine: sa.Engine) -> list[str]:
    """Returns what is wrong with a ledger, in sentences; empty if nothing is."""
    found = revision_of(engine)
    if found != REVISION:
        return [f"its tables are at step {found}, this program needs {REVISION}"]
    wrong: list[str] = []
    with reading(engine) as connection:
        if engine.dialect.name == "sqlite":
            rows = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
            wrong += [f"the file is damaged: {row}" for row in rows if row != "ok"]
        names = set(sa.inspect(connection).get_table_names())
        wrong += [f"table {t} is missing" for t in metadata.tables if t not in names]
        if not wrong:
            wrong += _disagreements(connection)
    return wrong


def _disagreements(connection: sa.Connection) -> Iterator[str]:
    """Compare the sums that are kept with the rows that they sum.

    The database does it, in one pass over the records: it has the room for any number of keys.
    """
    tokens = usage.c.prompt_tokens + usage.c.completion_tokens
    recorded = sa.select(usage.c.key_id, tokens.label("recorded"), _zero("day"), _zero("month"))
    # The name of a day is longer than that of a month.
    by_day = sa.func.length(spending.c.period) == len(period_of(0.0, "day"))
    kept = [
        sa.case((of_period, spending.c.used), else_=0).label(per)
        for per, of_period in (("day", by_day), ("month", ~by_day))
    ]
    rows = sa.union_all(
        recorded.where(usage.c.key_id.is_not(None)),
        sa.select(spending.c.key_id, _zero("recorded"), *kept),
    ).subquery()
    for key_id, summed, *sums in _sums(connection, rows, ["key_id"], "recorded", *PERIODS):
        for per, used in zip(PERIODS, sums, strict=True):
            if used != summed:
                yield f"{key_id} used {summed} tokens by its records, {used} by its {per}s"
    rows = sa.union_all(
        sa.select(spending.c.key_id, spending.c.period, spending.c.reserved, _zero("held")).where(
            spending.c.reserved != 0
        ),
        sa.select(
            reservations.c.key_id, reservations.c.period, _zero("reserved"), reservations.c.tokens
        ),
    ).subquery()
    for key_id, period, reserved, held in _sums(
        connection, rows, ["key_id", "period"], "reserved", "held"
    ):
        yield f"{key_id} has {reserved} tokens reserved in {period}, {held} by its reservations"


def _zero(name: str) -> sa.Label[int]:
    return sa.literal_column("0", sa.BigInteger).label(name)


def _sums(
    connection: sa.Connection, rows: sa.Subquery, by: Sequence[str], *names: str
) -> Iterator[tuple[Any, ...]]:
    """Returns the groups, in order, whose sums are not all equal, each with its sums."""
    sums = [sa.cast(sa.func.sum(rows.c[name]), sa.BigInteger) for name in names]
    groups = [rows.c[name] for name in by]
    differ = sa.or_(*(sums[0] != other for other in sums[1:]))
    statement = sa.select(*groups, *sums).group_by(*groups).having(differ).order_by(*groups)
    yield from map(tuple, connection.execute(statement))
