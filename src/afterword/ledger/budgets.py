"""Budgets in the database: what is reserved and what is used, together never over the budget.

Every transaction touches rows in the order of (key, period), so servers cannot deadlock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from afterword.core.account import PERIODS, UsageRecord
from afterword.ledger.periods import period_of
from afterword.ledger.record_writer import Claim
from afterword.ledger.tables import processes, reservations, spending, usage


class _Statements(msgspec.Struct, frozen=True):
    """The statements that differ between databases. Building one takes longer than running it.

    ``take``, ``hold`` and ``registered`` are in the driver's own SQL, because a client waits for
    them and SQLAlchemy takes longer to compile a statement than SQLite to run it.
    """

    take: str
    hold: str
    registered: str
    new_spending: sa.Executable
    new_usage: sa.Executable
    add: sa.Executable


def _made_for(dialect: Any, driver: sa.Dialect) -> _Statements:  # noqa: ANN401 - a module of SQLAlchemy's
    counted = dialect.insert(spending)
    return _Statements(
        str(_TAKE.compile(dialect=driver)),
        str(_HOLD.compile(dialect=driver)),
        str(_REGISTERED.compile(dialect=driver)),
        dialect.insert(spending).on_conflict_do_nothing(),
        dialect.insert(usage).on_conflict_do_nothing().returning(usage.c.id),
        counted.on_conflict_do_update(
            index_elements=[spending.c.key_id, spending.c.period],
            set_={
                "used": spending.c.used + counted.excluded.used,
                "reserved": spending.c.reserved - sa.bindparam("given_back"),
            },
        ),
    )


_TAKE = (
    sa.update(spending)
    .where(
        spending.c.key_id == sa.bindparam("of_key"),
        spending.c.period == sa.bindparam("in_period"),
        spending.c.used + spending.c.reserved + sa.bindparam("tokens")
        <= sa.bindparam("budget_tokens"),
    )
    .values(reserved=spending.c.reserved + sa.bindparam("tokens"))
)
_HOLD = sa.insert(reservations)
# A lock against the process that takes this one for dead, where a database has such locks.
_REGISTERED = (
    sa.select(processes.c.beats)
    .where(processes.c.id == sa.bindparam("process_id"))
    .with_for_update(read=True)
)
_LET_GO = (
    sa.delete(reservations)
    .where(reservations.c.id.in_(sa.bindparam("ids", expanding=True)))
    .returning(reservations.c.key_id, reservations.c.period, reservations.c.tokens)
)


@cache
def _statements(database: str) -> _Statements:
    if database == "sqlite":
        return _made_for(sqlite, sqlite.dialect(paramstyle="named"))
    # A ledger in SQLite does not need these imports.
    from sqlalchemy.dialects import postgresql  # noqa: PLC0415
    from sqlalchemy.dialects.postgresql import psycopg  # noqa: PLC0415

    return _made_for(postgresql, psycopg.dialect())  # type: ignore[no-untyped-call]


def registered(connection: sa.Connection, process_id: str) -> bool:
    """Whether others still count on a process: nobody has taken it for dead and removed it."""
    statement = _statements(connection.dialect.name).registered
    return connection.exec_driver_sql(statement, {"process_id": process_id}).first() is not None


def claim(connection: sa.Connection, wanted: Claim, process_id: str) -> int | None:
    """Reserve. Returns None, or the tokens that are left if they are too few."""
    if not _take(connection, wanted):
        _begin_period(connection, wanted)
        if not _take(connection, wanted):
            spent = connection.execute(
                sa.select(spending.c.used + spending.c.reserved).where(
                    spending.c.key_id == wanted.key_id, spending.c.period == wanted.period
                )
            ).scalar_one()
            return max(wanted.budget_tokens - int(spent), 0)
    _record(connection, wanted, process_id)
    return None


def _begin_period(connection: sa.Connection, wanted: Claim) -> None:
    """Add a key's row of a period, if there is none."""
    row = {"key_id": wanted.key_id, "period": wanted.period, "used": 0, "reserved": 0}
    connection.execute(_statements(connection.dialect.name).new_spending, row)


def _take(connection: sa.Connection, wanted: Claim) -> bool:
    """Decide by one statement: two servers cannot both take the last tokens."""
    values = {
        "of_key": wanted.key_id,
        "in_period": wanted.period,
        "tokens": wanted.tokens,
        "budget_tokens": wanted.budget_tokens,
    }
    statement = _statements(connection.dialect.name).take
    return connection.exec_driver_sql(statement, values).rowcount == 1


def _record(connection: sa.Connection, wanted: Claim, process_id: str) -> None:
    row = {
        "id": wanted.id,
        "process_id": process_id,
        "key_id": wanted.key_id,
        "period": wanted.period,
        "tokens": wanted.tokens,
    }
    connection.exec_driver_sql(_statements(connection.dialect.name).hold, row)


def restore(connection: sa.Connection, held: Iterable[Claim], process_id: str) -> None:
    """Reserve again what others gave back because this process was silent.

    Nobody may have spent anything in a period yet, if the database is another one.
    """
    for wanted in sorted(held, key=lambda claim: (claim.key_id, claim.period)):
        _begin_period(connection, wanted)
        connection.execute(
            sa.update(spending)
            .where(spending.c.key_id == wanted.key_id, spending.c.period == wanted.period)
            .values(reserved=spending.c.reserved + wanted.tokens)
        )
        _record(connection, wanted, process_id)


def write(
    connection: sa.Connection, records: Sequence[UsageRecord], holding: Sequence[str] | None = None
) -> int:
    """Write ended requests, each once even if it comes again; give back their reservations.

    ``holding`` are the requests that may have a reservation; None is all of ``records``. Returns
    how many records were new.
    """
    new = _insert_usage(connection, records)
    used: Counter[tuple[str, str]] = Counter()
    for record in records:
        if record.id in new and record.key_id is not None:
            for per in PERIODS:
                period = period_of(record.started_at, per)
                used[record.key_id, period] += record.prompt_tokens + record.completion_tokens
    ids = [record.id for record in records] if holding is None else holding
    given_back = _tokens_of(connection.execute(_LET_GO, {"ids": ids})) if ids else Counter()
    _add(connection, used, given_back)
    return len(new)


def give_back(connection: sa.Connection, process_id: str) -> int:
    """Remove a dead process and its reservations. Returns how many it had."""
    connection.execute(sa.delete(processes).where(processes.c.id == process_id))
    held = connection.execute(
        sa.delete(reservations)
        .where(reservations.c.process_id == process_id)
        .returning(reservations.c.key_id, reservations.c.period, reservations.c.tokens)
    ).all()
    _add(connection, Counter(), _tokens_of(held))
    return len(held)


def _insert_usage(connection: sa.Connection, records: Sequence[UsageRecord]) -> frozenset[str]:
    if not records:
        return frozenset()
    rows = [msgspec.structs.asdict(record) for record in records]
    statement = _statements(connection.dialect.name).new_usage
    return frozenset(connection.execute(statement, rows).scalars())


def _tokens_of(rows: Iterable[sa.Row[str, str, int]]) -> Counter[tuple[str, str]]:
    tokens: Counter[tuple[str, str]] = Counter()
    for key_id, period, held in rows:
        tokens[key_id, period] += held
    return tokens


def _add(
    connection: sa.Connection,
    used: Counter[tuple[str, str]],
    given_back: Counter[tuple[str, str]],
) -> None:
    rows = [
        {
            "key_id": at[0],
            "period": at[1],
            "used": used[at],
            "reserved": 0,
            "given_back": given_back[at],
        }
        for at in sorted({*used, *given_back})
    ]
    if rows:
        connection.execute(_statements(connection.dialect.name).add, rows)
