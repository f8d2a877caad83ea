"""Budgets in the database: what is reserved, what is used, never more than there is.

Rows are touched in the order of (key, period), so that servers never wait for each other in a ring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from afterword.core.account import Period, UsageRecord
from afterword.ledger.keys import period_of
from afterword.ledger.records import processes, reservations, spending, usage

_PERIODS: Sequence[Period] = ("day", "month")


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A worst case to be taken out of a budget."""

    id: str
    key_id: str
    period: str
    tokens: int
    budget_tokens: int


def claim(connection: sa.Connection, wanted: Claim, process_id: str) -> int | None:
    """Reserve, or give the tokens that are left of the budget."""
    if not _take(connection, wanted):
        row = {"key_id": wanted.key_id, "period": wanted.period, "used": 0, "reserved": 0}
        connection.execute(_insert(connection, spending).on_conflict_do_nothing(), row)
        if not _take(connection, wanted):
            spent = connection.execute(
                sa.select(spending.c.used + spending.c.reserved).where(
                    spending.c.key_id == wanted.key_id, spending.c.period == wanted.period
                )
            ).scalar_one()
            return max(wanted.budget_tokens - int(spent), 0)
    _record(connection, wanted, process_id)
    return None


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


def _take(connection: sa.Connection, wanted: Claim) -> bool:
    """The whole decision is this one statement: two servers cannot both have the last tokens."""
    values = {
        "of_key": wanted.key_id,
        "in_period": wanted.period,
        "tokens": wanted.tokens,
        "budget_tokens": wanted.budget_tokens,
    }
    return connection.execute(_TAKE, values).rowcount == 1


def _record(connection: sa.Connection, wanted: Claim, process_id: str) -> None:
    row = {
        "id": wanted.id,
        "process_id": process_id,
        "key_id": wanted.key_id,
        "period": wanted.period,
        "tokens": wanted.tokens,
    }
    connection.execute(_HOLD, row)


def restore(connection: sa.Connection, held: Iterable[Claim], process_id: str) -> None:
    """Hold again what was given back while this process could not be heard of."""
    for wanted in sorted(held, key=lambda claim: (claim.key_id, claim.period)):
        connection.execute(
            sa.update(spending)
            .where(spending.c.key_id == wanted.key_id, spending.c.period == wanted.period)
            .values(reserved=spending.c.reserved + wanted.tokens)
        )
        _record(connection, wanted, process_id)


def fold(
    connection: sa.Connection, records: Sequence[UsageRecord], *, released: Sequence[str] = ()
) -> int:
    """Take in ended requests, each once however often it comes; give back their reservations.

    ``released`` are requests without a record. Gives how many records were new.
    """
    new = _insert_usage(connection, records)
    used: Counter[tuple[str, str]] = Counter()
    for record in records:
        if record.id in new and record.key_id is not None:
            for per in _PERIODS:
                period = period_of(record.started_at, per)
                used[record.key_id, period] += record.prompt_tokens + record.completion_tokens
    given_back = _drop(connection, [*(record.id for record in records), *released])
    _add(connection, used, given_back)
    return len(new)


def give_back(connection: sa.Connection, process_id: str) -> int:
    """End a process that is dead: its reservations come back. Gives how many there were."""
    connection.execute(sa.delete(processes).where(processes.c.id == process_id))
    rows = connection.execute(
        sa.delete(reservations)
        .where(reservations.c.process_id == process_id)
        .returning(reservations.c.key_id, reservations.c.period, reservations.c.tokens)
    ).all()
    given_back: Counter[tuple[str, str]] = Counter()
    for key_id, period, tokens in rows:
        given_back[key_id, period] += tokens
    _add(connection, Counter(), given_back)
    return len(rows)


def _insert_usage(connection: sa.Connection, records: Sequence[UsageRecord]) -> frozenset[str]:
    if not records:
        return frozenset()
    rows = [msgspec.structs.asdict(record) for record in records]
    statement = _insert(connection, usage).on_conflict_do_nothing().returning(usage.c.id)
    return frozenset(connection.execute(statement, rows).scalars())


def _drop(connection: sa.Connection, ids: Sequence[str]) -> Counter[tuple[str, str]]:
    given_back: Counter[tuple[str, str]] = Counter()
    rows = connection.execute(
        sa.delete(reservations)
        .where(reservations.c.id.in_(ids))
        .returning(reservations.c.key_id, reservations.c.period, reservations.c.tokens)
    )
    for key_id, period, tokens in rows:
        given_back[key_id, period] += tokens
    return given_back


def _add(
    connection: sa.Connection,
    used: Counter[tuple[str, str]],
    given_back: Counter[tuple[str, str]],
) -> None:
    for key_id, period in sorted({*used, *given_back}):
        at = (key_id, period)
        statement = _insert(connection, spending).values(
            key_id=key_id, period=period, used=used[at], reserved=0
        )
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=[spending.c.key_id, spending.c.period],
                set_={
                    "used": spending.c.used + statement.excluded.used,
                    "reserved": spending.c.reserved - given_back[at],
                },
            )
        )


def _insert(connection: sa.Connection, table: sa.Table) -> Any:  # noqa: ANN401 - one of two dialects' own
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)
