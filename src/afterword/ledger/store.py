"""Usage in the database: sums, and single requests."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from afterword.core.account import UsageBy, UsageQuery, UsageRecord, UsageSum
from afterword.core.errors import InvalidRequest
from afterword.ledger.database import reading
from afterword.ledger.tables import keys, usage

_COUNTS = (
    "requests", "answered", "prompt_tokens", "cached_tokens", "completion_tokens", "total_tokens",
)  # fmt: skip


class UsageStore:
    """The usage records of a database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def sums(self, by: UsageBy, query: UsageQuery) -> list[UsageSum]:
        """Returns sums by key (its name), model, user or day: largest first, days in order."""
        total = sa.func.sum(usage.c.prompt_tokens + usage.c.completion_tokens)
        grouped = (
            sa.select(
                _group(by, self._engine.dialect.name).label("group"),
                sa.func.count().label("requests"),
                sa.func.sum(sa.case((usage.c.status == "answered", 1), else_=0)).label("answered"),
                sa.func.sum(usage.c.prompt_tokens).label("prompt_tokens"),
                sa.func.sum(usage.c.cached_tokens).label("cached_tokens"),
                sa.func.sum(usage.c.completion_tokens).label("completion_tokens"),
                total.label("total_tokens"),
            )
            .where(*_conditions(query))
            .group_by(sa.literal_column('"group"'))
            .subquery()
        )
        group: sa.ColumnElement[Any] = grouped.c.group
        rows_of: sa.FromClause = grouped
        if by == "key":
            # Names are looked up for sums, not for records.
            rows_of = grouped.outerjoin(keys, keys.c.id == group)
            group = sa.func.coalesce(keys.c.name, group, "-")
        statement = (
            sa.select(group.label("group"), *(grouped.c[name] for name in _COUNTS))
            .select_from(rows_of)
            .order_by(*([group] if by == "day" else [grouped.c.total_tokens.desc(), group]))
        )
        with reading(self._engine) as connection:
            # PostgreSQL returns sums of integers as decimals.
            return [
                UsageSum(group=row["group"], **{name: int(row[name]) for name in _COUNTS})
                for row in connection.execute(statement).mappings()
            ]

    def requests(
        self, query: UsageQuery, *, after: str = "", most: int = 1000
    ) -> list[UsageRecord]:
        """Returns at most ``most`` records in the order in which they began.

        ``after`` is the id of a record: those behind it. Raises ``InvalidRequest`` if it is none.
        """
        statement = (
            sa.select(usage)
            .where(*_conditions(query))
            # An index has this order, so a page costs what it shows, however long the table is.
            .order_by(usage.c.started_at, usage.c.id)
            .limit(most)
        )
        with reading(self._engine) as connection:
            if after:
                began = connection.scalar(sa.select(usage.c.started_at).where(usage.c.id == after))
                if began is None:
                    raise InvalidRequest("'after' is no id of a record", param="after")
                behind = sa.tuple_(usage.c.started_at, usage.c.id) > sa.tuple_(began, after)
                statement = statement.where(usage.c.started_at >= began, behind)
            rows = connection.execute(statement).mappings().all()
        return [UsageRecord(**row) for row in rows]


def _group(by: UsageBy, dialect: str) -> sa.ColumnElement[str]:
    match by:
        case "key":
            return usage.c.key_id
        case "model":
            return usage.c.model
        case "user":
            return sa.func.coalesce(usage.c.user, "-")
        case "day":
            if dialect == "sqlite":
                return sa.func.strftime("%Y-%m-%d", usage.c.started_at, "unixepoch")
            moment = sa.func.timezone("UTC", sa.func.to_timestamp(usage.c.started_at))
            return sa.func.to_char(moment, "YYYY-MM-DD")


def _conditions(query: UsageQuery) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if query.since is not None:
        conditions.append(usage.c.started_at >= query.since)
    if query.until is not None:
        conditions.append(usage.c.started_at < query.until)
    if query.key_id is not None:
        conditions.append(usage.c.key_id == query.key_id)
    return conditions
