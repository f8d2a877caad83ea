"""Budgets are never overdrawn, records count once, dead processes give back everything."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afterword.core.account import UsageRecord
from afterword.ledger import budgets
from afterword.ledger.audit import check
from afterword.ledger.periods import period_of
from afterword.ledger.record_writer import Claim
from afterword.ledger.tables import reservations, spending, usage
from ledger.values import NOW, record
from support.examples import examples

MONTH = "2026-11"


def claim(request_id: str, tokens: int, *, key_id: str = "k", budget: int = 1000) -> Claim:
    return Claim(id=request_id, key_id=key_id, period=MONTH, tokens=tokens, budget_tokens=budget)


def spent(engine: sa.Engine, key_id: str = "k", period: str = MONTH) -> tuple[int, int]:
    """Used and reserved."""
    with engine.connect() as connection:
        row = connection.execute(
            sa.select(spending.c.used, spending.c.reserved).where(
                spending.c.key_id == key_id, spending.c.period == period
            )
        ).one_or_none()
    return (0, 0) if row is None else (row.used, row.reserved)


def test_a_hundred_clients_race_for_the_last_thousand_tokens(
    connected: Callable[[], sa.Engine],
) -> None:
    """Four servers admit exactly what fits."""
    engines = [connected() for _ in range(4)]

    def ask(i: int) -> int | None:
        with engines[i % 4].begin() as connection:
            return budgets.claim(connection, claim(f"r{i}", 30), f"p{i % 4}")

    with ThreadPoolExecutor(8) as threads:
        left = list(threads.map(ask, range(100)))
    assert Counter(left) == {None: 33, 10: 67}
    assert spent(engines[0]) == (0, 990)


def test_a_settled_request_gives_back_what_it_did_not_use(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        assert budgets.claim(connection, claim("r", 900), "p") is None
        assert budgets.claim(connection, claim("s", 101), "p") == 100
    with engine.begin() as connection:
        assert budgets.write(connection, [record("r", tokens=40)]) == 1
    assert spent(engine) == (40, 0)
    with engine.begin() as connection:
        assert budgets.claim(connection, claim("s", 961), "p") == 960
        assert budgets.claim(connection, claim("s", 960), "p") is None
        budgets.write(connection, [], ["s"])
    assert spent(engine) == (40, 0)


def test_usage_counts_from_the_periods_start_though_the_budget_came_later(
    engine: sa.Engine,
) -> None:
    with engine.begin() as connection:
        budgets.write(connection, [record("a", tokens=600), record("b", tokens=300)])
        assert budgets.claim(connection, claim("c", 101), "p") == 100
    assert spent(engine, period="2026-11-25") == (900, 0)


def test_what_a_process_held_comes_back_when_it_is_dead(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        for i in range(5):
            budgets.claim(connection, claim(f"r{i}", 100), "dead" if i < 3 else "alive")
        assert budgets.give_back(connection, "dead") == 3
    assert spent(engine) == (0, 200)
    # Its journal is found later. Its records count once and do not touch other reservations.
    with engine.begin() as connection:
        budgets.write(connection, [record("r0", tokens=50)])
        budgets.write(connection, [record("r0", tokens=50)])
    assert spent(engine) == (50, 200)


@pytest.mark.parametrize("known", [True, False])
def test_a_process_that_was_taken_for_dead_reserves_again(engine: sa.Engine, known: bool) -> None:
    """Another database in its place may know nothing of the keys yet."""
    held = [claim("r1", 100), claim("r2", 50, key_id="j")]
    with engine.begin() as connection:
        for one in held:
            budgets.claim(connection, one, "p")
        budgets.give_back(connection, "p")
    assert spent(engine) == (0, 0)
    with engine.begin() as connection:
        if not known:
            connection.execute(sa.delete(spending))
        budgets.restore(connection, held, "p")
    assert spent(engine) == (0, 100)
    assert spent(engine, "j") == (0, 50)


def test_periods_are_days_and_months_of_utc() -> None:
    assert period_of(NOW, "day") == "2026-11-25"
    assert period_of(NOW, "month") == MONTH
    # 23:59:59 and 0:00 on the last night of a year.
    assert period_of(1_798_761_599, "month") == "2026-12"
    assert period_of(1_798_761_600, "day") == "2027-01-01"


@given(seed=st.integers(0, 10**6))
@settings(
    max_examples=examples(25), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_however_often_and_in_what_order_records_come(engine: sa.Engine, seed: int) -> None:
    """Each record counts once."""
    chance = random.Random(seed)
    with engine.begin() as connection:
        for table in (usage, spending, reservations):
            connection.execute(sa.delete(table))
    records = [
        record(
            f"{seed}-{i}",
            key_id=chance.choice(["k", "j", None]),
            tokens=chance.randrange(100),
            started_at=NOW + chance.randrange(-3, 3) * 86_400,
        )
        for i in range(20)
    ]
    come = [*records, *chance.choices(records, k=15)]
    chance.shuffle(come)
    while come:
        batch: list[UsageRecord] = [come.pop() for _ in range(min(len(come), 7))]
        once = {one.id: one for one in batch}
        with engine.begin() as connection:
            budgets.write(connection, list(once.values()))
    for key_id in ("k", "j"):
        total = sum(
            one.prompt_tokens + one.completion_tokens for one in records if one.key_id == key_id
        )
        assert spent(engine, key_id) == (total, 0)
    assert check(engine) == []
