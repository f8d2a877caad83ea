"""The audit of a ledger's database names what does not agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from afterword.ledger import audit, budgets
from afterword.ledger.audit import check
from afterword.ledger.record_writer import Claim
from afterword.ledger.tables import reservations, spending
from ledger.values import record


def test_a_check_brings_nothing_that_agrees(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it needs no memory for keys, of which there may be a million."""
    with engine.begin() as connection:
        budgets.write(connection, [record(f"cmpl-{i}", key_id=f"k{i}") for i in range(20)])
        claim = Claim(id="c", key_id="k7", period="2026-11", tokens=5, budget_tokens=99)
        assert budgets.claim(connection, claim, "p") is None
        wrong = sa.update(spending).where(spending.c.key_id == "k3", spending.c.period == "2026-11")
        connection.execute(wrong.values(used=11, reserved=2))
        lost = {"id": "x", "process_id": "p", "key_id": "nobody", "period": "2026", "tokens": 1}
        connection.execute(sa.insert(reservations).values(lost))
    brought = list[object]()
    sums = audit._sums

    def note(*given: Any) -> Iterator[tuple[Any, ...]]:
        for row in sums(*given):
            brought.append(row)
            yield row

    monkeypatch.setattr(audit, "_sums", note)
    assert check(engine) == [
        "k3 used 10 tokens by its records, 11 by its months",
        "k3 has 2 tokens reserved in 2026-11, 0 by its reservations",
        "nobody has 0 tokens reserved in 2026, 1 by its reservations",
    ]
    assert brought == [("k3", 10, 10, 11), ("k3", "2026-11", 2, 0), ("nobody", "2026", 0, 1)]
