"""How many front ends, and how much of a database and a Redis, a load needs: plain arithmetic.

All costs are processor seconds, operations and bytes of one request or one token, as
``benchmarks/gateway_scale.py`` measures them. Limits are those of one machine. Nothing here looks
at a clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What one request costs, whatever its length, and what one streamed token costs, in µs."""

    front_request_us: float
    front_token_us: float
    limit_commands: float
    limit_us: float
    claim_transactions: float
    claim_us: float
    record_us: float
    record_bytes: int
    journal_bytes: int


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Requests a second, tokens an answer, and shares of the requests.

    ``limited`` have limits per minute, ``budgeted`` a budget; ``hottest`` is the share of the
    latter that one budget gets.
    """

    requests_per_s: int
    tokens: int
    limited: float
    budgeted: float
    hottest: float


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How full a core may be, and what one Redis, one database and one row can carry.

    ``replica_tokens_per_s`` is what one server behind computes. The periods are the code's own:
    records and keys every ``flush_s``, heartbeats and probes every ``beat_s``.
    """

    busy: float = 0.6
    redis_cores: float = 1.0
    database_cores: float = 16.0
    database_connections: int = 500
    process_rows_per_s: int = 100_000
    claims_of_one_budget_per_s: float = 2000.0
    probes_of_one_server_per_s: float = 100.0
    replica_tokens_per_s: int = 5000
    flush_s: float = 0.4
    beat_s: float = 5.0


class Needed(msgspec.Struct, frozen=True, kw_only=True):
    """What a load needs; ``breaks`` names what one machine of it cannot carry, worst first."""

    fronts: int
    replicas: int
    redis_commands_per_s: int
    redis_cores: float
    transactions_per_s: int
    database_cores: float
    rows_bytes_per_day: int
    journal_bytes_per_s: int
    breaks: Sequence[str]


def needed(load: Load, costs: Costs, limits: Limits) -> Needed:
    """Returns what a load needs."""
    rate = load.requests_per_s
    front_us = costs.front_request_us + costs.front_token_us * load.tokens
    fronts = max(1, math.ceil(rate * front_us / 1e6 / limits.busy))
    replicas = max(1, math.ceil(rate * load.tokens / limits.replica_tokens_per_s))
    limited, budgeted = rate * load.limited, rate * load.budgeted
    redis_cores = limited * costs.limit_us / 1e6
    # Claims that arrive together share a transaction; records are written once a flush.
    transactions = budgeted * costs.claim_transactions + fronts / limits.flush_s
    database_cores = (budgeted * costs.claim_us + rate * costs.record_us) / 1e6
    ratios = {
        "Redis": redis_cores / limits.redis_cores / limits.busy,
        "the database": database_cores / limits.database_cores / limits.busy,
        "the row of one budget": budgeted * load.hottest / limits.claims_of_one_budget_per_s,
        "connections to the database": fronts / limits.database_connections,
        # Each front end reads the rows of all of them.
        "the list of processes": fronts**2 / limits.beat_s / limits.process_rows_per_s,
        "probes": fronts / limits.beat_s / limits.probes_of_one_server_per_s,
    }
    over = sorted((name for name in ratios if ratios[name] > 1), key=lambda n: -ratios[n])
    return Needed(
        fronts=fronts,
        replicas=replicas,
        redis_commands_per_s=round(limited * costs.limit_commands),
        redis_cores=round(redis_cores, 2),
        transactions_per_s=round(transactions),
        database_cores=round(database_cores, 2),
        rows_bytes_per_day=rate * costs.record_bytes * 86_400,
        journal_bytes_per_s=rate * costs.journal_bytes,
        breaks=over,
    )


def table(loads: Sequence[Load], costs: Costs, limits: Limits) -> str:
    """Returns a Markdown table: a row for each load."""
    head = ("requests/s", "fronts", "servers behind", "Redis commands/s", "Redis cores",
            "transactions/s", "database cores", "GB of records a day",
            "over the limit")  # fmt: skip
    rows = [head, ("---",) * len(head)]
    for load in loads:
        one = needed(load, costs, limits)
        records_gb = one.rows_bytes_per_day / 1e9
        numbers = (load.requests_per_s, one.fronts, one.replicas, one.redis_commands_per_s,
                   one.redis_cores, one.transactions_per_s, one.database_cores)  # fmt: skip
        cells = [f"{number:,}" for number in numbers]
        rows.append((*cells, f"{records_gb:,.0f}", ", ".join(one.breaks) or "nothing"))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


COSTS = Costs(
    front_request_us=3000, front_token_us=100, limit_commands=20, limit_us=270,
    claim_transactions=0.2, claim_us=300, record_us=220, record_bytes=330, journal_bytes=670,
)  # fmt: skip
"""Measured by ``benchmarks/gateway_scale.py`` and ``benchmarks/gateway.py``, on a busy machine."""
LIMITS = Limits()
LOADS = tuple(
    Load(requests_per_s=rate, tokens=256, limited=1.0, budgeted=0.5, hottest=0.1)
    for rate in (1_000, 10_000, 100_000)
)
"""What docs/scaling.md shows."""
