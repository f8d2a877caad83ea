"""The arithmetic of docs/scaling.md, and that the page shows its result."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.scaling import COSTS, LIMITS, LOADS, Costs, Limits, Load, needed, table

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
PLAIN = Costs(
    front_request_us=1000, front_token_us=50, limit_commands=20, limit_us=100,
    claim_transactions=1, claim_us=200, record_us=100, record_bytes=200, journal_bytes=500,
)  # fmt: skip
HALF = Limits(
    busy=0.5, redis_cores=1, database_cores=1, flush_s=0.5, claims_of_one_budget_per_s=400
)


def test_a_load_by_hand() -> None:
    load = Load(requests_per_s=1000, tokens=100, limited=0.5, budgeted=0.25, hottest=1.0)
    one = needed(load, PLAIN, HALF)
    # 1,000 requests of 1 ms and 100 tokens of 50 us are 6 cores, which are 12 half-busy ones.
    assert one.fronts == 12
    assert one.redis_commands_per_s == 10_000
    assert one.redis_cores == 0.05
    assert one.transactions_per_s == 250 + 24
    assert one.database_cores == 0.15
    assert one.rows_bytes_per_day == 200 * 86_400_000
    assert one.journal_bytes_per_s == 500_000
    assert one.breaks == []


@pytest.mark.parametrize(
    ("limited", "budgeted", "rate", "first"),
    [
        (1.0, 0.0, 6_000, "Redis"),
        (0.0, 1.0, 500, "the row of one budget"),
        (0.0, 0.0, 6_000, "the database"),
    ],
)
def test_what_breaks_first_is_named_first(
    limited: float, budgeted: float, rate: int, first: str
) -> None:
    load = Load(requests_per_s=rate, tokens=1, limited=limited, budgeted=budgeted, hottest=1.0)
    assert needed(load, PLAIN, HALF).breaks[0] == first


@given(st.integers(1, 10**5), st.integers(1, 2000), st.integers(2, 10))
def test_ten_times_the_load_needs_no_less(rate: int, tokens: int, times: int) -> None:
    load = Load(requests_per_s=rate, tokens=tokens, limited=0.5, budgeted=0.1, hottest=0.1)
    more = msgspec.structs.replace(load, requests_per_s=rate * times)
    few, many = needed(load, COSTS, LIMITS), needed(more, COSTS, LIMITS)
    assert few.fronts <= many.fronts <= few.fronts * times
    assert set(few.breaks) <= set(many.breaks)


def test_the_page_shows_the_table() -> None:
    shown = table(LOADS, COSTS, LIMITS)
    assert shown in PAGE.read_text(), f"docs/scaling.md should have:\n\n{shown}"
