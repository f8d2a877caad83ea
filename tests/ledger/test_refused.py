"""Counts and records that nobody should believe: nothing waits for them, and nothing is lost."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from afterword.core.account import KeyTerms, Spent, UsageQuery, UsageRecord
from afterword.core.limits import MOST_TOKENS
from afterword.ledger.audit import check
from afterword.ledger.journal import Journal
from afterword.ledger.keys import KeyStore
from afterword.ledger.orphans import unreadable
from afterword.ledger.process import ProcessIdentity
from afterword.ledger.record_writer import Claim
from afterword.ledger.set_aside import SetAside, of_line
from afterword.ledger.soundness import bounded, clean, fault_of
from afterword.ledger.store import UsageStore
from afterword.ledger.tables import reservations
from afterword.ledger.writer import LedgerWriter
from ledger.values import Hand, record
from support.journals import die

ODD_COUNTS: list[Any] = [
    10**19, 2**62, 2**63, 2**64, 10**400, -1, -1_000_000, -(10**400), True, False,
    math.nan, math.inf, -math.inf, 1.5, 1e300, "7", None,
]  # fmt: skip
ODD_RECORDS: dict[str, dict[str, Any]] = {
    **{f"tokens-{i}": {"prompt_tokens": count} for i, count in enumerate(ODD_COUNTS)},
    "cached": {"cached_tokens": 10**19},
    "completion": {"completion_tokens": -5},
    "year-30000": {"started_at": 1e12},
    "before-1970": {"started_at": -1.0},
    "no-moment": {"started_at": math.nan},
    "no-time": {"duration_ms": math.inf},
    "late": {"first_token_ms": -1e300},
    "null": {"user": "a\0b"},
    "half": {"model": "\ud800"},
}


def spent(**counts: Any) -> Spent:
    given: dict[str, Any] = {
        "status": "answered", "prompt_tokens": 5, "cached_tokens": 2, "completion_tokens": 3,
        "first_token_ms": 1.0, "duration_ms": 2.0, **counts,
    }  # fmt: skip
    return Spent(**given)


@given(
    counts=st.tuples(*[st.one_of(st.sampled_from(ODD_COUNTS), st.integers())] * 3),
    times=st.tuples(*[st.one_of(st.floats(), st.integers(), st.none())] * 2),
    most=st.integers(0, 2**70),
)
def test_counts_end_within_what_was_reserved(
    counts: tuple[Any, Any, Any], times: tuple[Any, Any], most: int
) -> None:
    prompt, cached, completion = counts
    said = spent(
        prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion,
        first_token_ms=times[0], duration_ms=times[1],
    )  # fmt: skip
    believed = bounded(said, most, request_id="r")
    assert 0 <= believed.cached_tokens <= believed.prompt_tokens
    assert 0 <= believed.completion_tokens <= min(most, MOST_TOKENS) - believed.prompt_tokens
    held = {name: getattr(believed, name) for name in Spent.__struct_fields__}
    assert fault_of(replace(record("r"), **held)) is None


def test_what_is_clamped_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert bounded(spent(), 8, request_id="r") == spent()
    assert caplog.text == ""
    believed = bounded(spent(completion_tokens=10**400), 8, request_id="cmpl-7")
    assert believed == spent()
    assert "cmpl-7: completion_tokens is (an integer of 1329 bits), recorded as 3" in caplog.text


@pytest.mark.parametrize("name", ODD_RECORDS)
def test_a_record_that_cannot_be_true_has_a_fault(name: str) -> None:
    assert fault_of(replace(record("r"), **ODD_RECORDS[name])) is not None


def test_text_that_databases_take_stays_as_it_is() -> None:
    assert clean("é 入\n\t") == "é 入\n\t"
    assert clean("a\0\ud800b") == "a\N{REPLACEMENT CHARACTER}?b"


@pytest.fixture
def writer(engine: sa.Engine, tmp_path: Path, hand: Hand) -> Iterator[LedgerWriter]:
    made = LedgerWriter(
        engine, ProcessIdentity("p", "host", 1), folder(tmp_path), clock=hand,
        on_written=lambda _: None,
    )  # fmt: skip
    yield made
    if made._connection is not None:
        made._connection.close()


def folder(tmp_path: Path) -> Path:
    journals = tmp_path / "journal"
    journals.mkdir(exist_ok=True)
    return journals


def claim(request_id: str, tokens: int = 10, key_id: str = "k") -> Claim:
    return Claim(id=request_id, key_id=key_id, period="2026-11", tokens=tokens, budget_tokens=100)


def nothing_is_held(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        assert connection.execute(sa.select(reservations)).all() == []
    assert check(engine) == []


def ids(engine: sa.Engine) -> list[str]:
    return [one.id for one in UsageStore(engine).requests(UsageQuery())]


@pytest.mark.parametrize("name", ODD_RECORDS)
def test_nothing_waits_for_a_record_that_is_refused(
    name: str, writer: LedgerWriter, engine: sa.Engine, key_store: KeyStore, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    made = key_store.create(KeyTerms(name="a"))
    writer.claim(claim("odd"))
    writer.flush()
    assert writer.keyring.terms(made.view.id) is not None
    writer.ended(record("before"))
    writer.ended(replace(record("odd"), **ODD_RECORDS[name]))
    writer.ended(record("after"))
    key_store.revoke("a")
    writer.refresh()
    writer._write_at_s = 0
    writer.flush()
    assert writer.reachable
    assert writer.pending_writes == 0
    assert writer.keyring.terms(made.view.id) is None
    assert ids(engine) == ["after", "before"]
    (entry,) = SetAside(folder(tmp_path)).entries()
    assert entry.source == "odd"
    assert "odd: its record is set aside" in caplog.text
    assert entry.reason in unreadable(folder(tmp_path))[0]
    nothing_is_held(engine)


def refuse_model(engine: sa.Engine, model: str) -> None:
    """A rule of the operator's own, which this program knows nothing about."""
    sqlite = (
        f"CREATE TRIGGER no BEFORE INSERT ON usage WHEN NEW.model = '{model}' "
        "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
    )
    body = f"IF NEW.model = '{model}' THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW;"
    postgres = (
        f"CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$",
        "CREATE TRIGGER no BEFORE INSERT ON usage FOR EACH ROW EXECUTE FUNCTION no()",
    )
    with engine.begin() as connection:
        for statement in (sqlite,) if engine.dialect.name == "sqlite" else postgres:
            connection.exec_driver_sql(statement)


def test_the_database_itself_refuses_one_of_many(
    writer: LedgerWriter, engine: sa.Engine, tmp_path: Path
) -> None:
    refuse_model(engine, "odd")
    held = [writer.claim(claim(f"r{i}")) for i in range(4)]
    writer.flush()
    assert [future.result() for future in held] == [None] * 4
    for i in range(4):
        writer.ended(replace(record(f"r{i}"), model="odd" if i == 1 else "toy"))
    writer._write_at_s = 0
    writer.flush()
    assert ids(engine) == ["r0", "r2", "r3"]
    (entry,) = SetAside(folder(tmp_path)).entries()
    assert (entry.source, "not this one" in entry.reason) == ("r1", True)
    assert '"model": "odd"' in entry.text
    nothing_is_held(engine)


def test_records_wait_for_a_database_that_cannot_be_written_to(
    writer: LedgerWriter, engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing table says nothing about a record."""
    writer.flush()
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE usage RENAME TO elsewhere")
    writer.ended(record("a"))
    writer._write_at_s = 0
    writer.flush()
    assert writer.pending_writes == 1
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO usage")
    writer._retry_at_s = writer._write_at_s = 0
    writer.flush()
    assert ids(engine) == ["a"]
    assert SetAside(folder(tmp_path)).entries() == []


def test_a_record_that_cannot_even_be_set_aside_stays_and_keys_go_on(
    writer: LedgerWriter, engine: sa.Engine, key_store: KeyStore, tmp_path: Path, hand: Hand
) -> None:
    (folder(tmp_path) / "set-aside.jsonl").mkdir()
    made = key_store.create(KeyTerms(name="a"))
    writer.ended(replace(record("odd"), prompt_tokens=-1))
    writer.flush()
    assert writer.pending_writes == 1
    assert writer.keyring.terms(made.view.id) is not None
    (folder(tmp_path) / "set-aside.jsonl").rmdir()
    hand.now_s += 1
    writer.flush()
    assert writer.pending_writes == 0
    assert len(SetAside(folder(tmp_path)).entries()) == 1


def test_one_claim_that_the_database_does_not_take_fails_alone(
    writer: LedgerWriter, engine: sa.Engine
) -> None:
    good, odd, last = claim("good"), claim("odd", 10**30, key_id="odd"), claim("last")
    futures = [writer.claim(one) for one in (good, replace(odd, budget_tokens=10**31), last)]
    writer.flush()
    assert [futures[0].result(), futures[2].result()] == [None, None]
    assert futures[1].exception() is not None
    assert writer.reachable


def test_claims_go_on_while_a_record_can_be_neither_kept_nor_set_aside(
    writer: LedgerWriter, engine: sa.Engine, tmp_path: Path
) -> None:
    (folder(tmp_path) / "set-aside.jsonl").mkdir()
    writer.flush()
    writer.ended(replace(record("odd"), prompt_tokens=-1))
    fits, refused = writer.claim(claim("fits")), writer.claim(claim("refused", 101))
    writer.flush()
    assert fits.result() is None
    assert refused.result() == 90
    assert writer.reachable
    assert writer.pending_writes == 1


def test_what_a_full_disk_cut_off_damages_no_other_entry(tmp_path: Path) -> None:
    aside = SetAside(folder(tmp_path))
    aside.file.write_bytes(b'{"source":"cut o')
    entry = of_line("place", "reason", b"text")
    aside.add([entry])
    assert [one.source for one in aside.entries()] == ["set-aside.jsonl", "place"]
    assert aside.entries()[1] == entry


ODD_LINES: dict[str, Callable[[UsageRecord], UsageRecord]] = {
    "too many": lambda one: replace(one, completion_tokens=10**19),
    "too few": lambda one: replace(one, prompt_tokens=-1_000_000),
    "year 30000": lambda one: replace(one, started_at=1e12),
}


@pytest.mark.parametrize("name", ODD_LINES)
def test_a_journal_of_an_older_server_with_such_counts_stops_no_start(
    name: str, writer: LedgerWriter, engine: sa.Engine, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.ERROR)
    journal = Journal(folder(tmp_path), "dead", limit_bytes=64 << 20)
    journal.__enter__()
    for one in ("a", "odd", "b"):
        journal.admit(replace(record(one), status="lost"))
        journal.settle(ODD_LINES[name](record(one)) if one == "odd" else record(one))
    die(journal)
    writer.flush()
    assert writer.reachable
    assert ids(engine) == ["a", "b"]
    assert [entry.source for entry in SetAside(folder(tmp_path)).entries()] == ["odd"]
    assert "odd: its record is set aside" in caplog.text
    assert [path.name for path in folder(tmp_path).iterdir()] == ["set-aside.jsonl"]
    nothing_is_held(engine)
