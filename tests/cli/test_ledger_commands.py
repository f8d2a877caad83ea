"""``afterword keys``, ``usage`` and ``db``: what they print, and one line for what is wrong."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from afterword.cli import cli
from afterword.cli.ledger import without_password
from afterword.config import EMBEDDED_MODEL, LEGACY_NAME
from afterword.core.account import KeyTerms, UsageRecord
from afterword.core.errors import ApiError, ConfigError
from afterword.ledger import budgets
from afterword.ledger.alive import AliveLock
from afterword.ledger.database import REVISION, connect, parse_url
from afterword.ledger.keys import KeyStore
from afterword.ledger.presence import Presence
from afterword.ledger.set_aside import SetAside, of_line
from afterword.ledger.tables import spending
from ledger.values import NOW, record

Afterword = Callable[..., Result]


@pytest.fixture
def afterword(database_url: str, tmp_path: Path) -> Afterword:
    """Runs a command on a ledger of each kind."""

    def call(*words: str) -> Result:
        flags = ("--database", database_url, "--data-dir", str(tmp_path))
        done = CliRunner().invoke(cli, [*words, *flags], catch_exceptions=True)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            assert isinstance(done.exception, (ConfigError, ApiError)), done.exc_info
        return done

    return call


def rows(done: Result) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def test_a_keys_life(afterword: Afterword) -> None:
    made = afterword(
        "keys", "create", "alice", "--models", "small, coder", "--rpm", "60", "--tpm", "10000",
        "--concurrent", "4", "--budget-tokens", "500", "--per", "day", "--expires", "90d",
    )  # fmt: skip
    secret = made.stdout.strip()
    assert secret.startswith("sk-af-")
    assert "not shown again" in made.stderr
    shown = rows(afterword("keys", "show", "alice"))
    assert shown["models"] == "small, coder"
    assert (shown["rpm"], shown["tpm"], shown["concurrent"]) == ("60", "10000", "4")
    assert shown["budget"] == "500/day"
    assert shown["key"] == f"{secret[:10]}…"
    header, line = afterword("keys", "list").stdout.splitlines()
    assert header.split()[:4] == ["NAME", "KEY", "STATE", "MODELS"]
    assert line.split()[0] == "alice"
    assert secret not in afterword("keys", "list").stdout
    rotated = afterword("keys", "rotate", "alice", "--overlap", "1h").stdout.strip()
    assert rotated.startswith("sk-af-")
    assert rotated != secret
    assert afterword("keys", "revoke", "alice").stdout == "alice is revoked\n"
    assert rows(afterword("keys", "show", "alice"))["state"] == "revoked"


@pytest.mark.parametrize(
    ("words", "says"),
    [(("keys", "create", "a", "--expires", "soon"), "expected a number and s, m, h, d or w"),
     # As of a variable of the shell that is not set.
     (("keys", "create", "a", "--expires", ""), "expected a number and s, m, h, d or w"),
     (("usage", "--until", ""), "expected 2026-11-25, 2026-11-25T14:00 or 7d"),
     (("usage", "--key", ""), "there is no key ''"),
     (("keys", "create", "a", "--rpm", "0"), "'rpm' is 0: expected 1 or more"),
     (("keys", "show", "nobody"), "there is no key 'nobody'"),
     (("keys", "revoke", "nobody"), "there is no key 'nobody'"),
     (("usage", "--since", "then"), "expected 2026-11-25, 2026-11-25T14:00 or 7d"),
     (("usage", "--key", "nobody"), "there is no key 'nobody'")],
)  # fmt: skip
def test_mistakes(afterword: Afterword, words: tuple[str, ...], says: str) -> None:
    done = afterword(*words)
    assert done.exit_code != 0
    assert says in str(done.exception)
    assert done.stdout == ""


def test_a_period_without_a_budget_is_refused(afterword: Afterword) -> None:
    """It would limit nothing, and its owner would believe that it does."""
    done = afterword("keys", "create", "a", "--per", "day")
    assert done.exit_code == 2
    assert "give --budget-tokens, too" in done.stderr
    assert len(afterword("keys", "list").stdout.splitlines()) == 1


def spend(engine: sa.Engine, key_store: KeyStore, records: list[UsageRecord]) -> None:
    with engine.begin() as connection:
        budgets.write(connection, records)


@pytest.fixture
def spent(engine: sa.Engine, key_store: KeyStore) -> str:
    """Write two days' records. Returns the id of alice's key."""
    key_id = key_store.create(KeyTerms(name="alice")).view.id
    evil = "=HYPERLINK(1)\x1b[31m[bold]"
    made = [
        record("cmpl-1", key_id=key_id, tokens=100),
        msgspec.structs.replace(record("cmpl-2", key_id=key_id, tokens=50), user=evil),
        record("cmpl-3", key_id=None, tokens=7, started_at=NOW - 86_400),
    ]
    spend(engine, key_store, made)
    return key_id


def test_usage_in_sums(afterword: Afterword, spent: str) -> None:
    by_key = [json.loads(line) for line in afterword("usage", "--json").stdout.splitlines()]
    assert [(row["group"], row["requests"], row["total_tokens"]) for row in by_key] == [
        ("alice", 2, 150), ("-", 1, 7),
    ]  # fmt: skip
    days = list(csv.DictReader(io.StringIO(afterword("usage", "--by", "day", "--csv").stdout)))
    assert [(row["group"], row["total_tokens"]) for row in days] == [
        ("2026-11-24", "7"), ("2026-11-25", "150"),
    ]  # fmt: skip
    table = afterword("usage", "--by", "model").stdout.splitlines()
    assert table[0].split()[:2] == ["MODEL", "REQUESTS"]
    assert table[1].split() == ["toy", "3", "3", "79", "0", "78", "157"]
    since = afterword("usage", "--since", "2026-11-25", "--until", "2026-11-26", "--json").stdout
    assert [json.loads(line)["group"] for line in since.splitlines()] == ["alice"]


def test_usage_request_by_request(afterword: Afterword, spent: str) -> None:
    lines = afterword("usage", "--requests", "--json", "--key", "alice").stdout.splitlines()
    found = [msgspec.json.decode(line, type=UsageRecord) for line in lines]
    assert [(one.id, one.key_id) for one in found] == [("cmpl-1", spent), ("cmpl-2", spent)]
    # People read moments and whole milliseconds, programs the numbers.
    table = afterword("usage", "--requests", "--key", "alice").stdout.splitlines()
    assert table[1].split()[-3:] == ["2026-11-25T09:46:40Z", "2", "20"]


def test_lists_of_any_length(afterword: Afterword, engine: sa.Engine, key_store: KeyStore) -> None:
    """Each row is one line, however wide it is."""
    made = [record(f"cmpl-{n:04}", tokens=n) for n in range(1, 1202)]
    wide = msgspec.structs.replace(made[-1], user="入" * 90)
    spend(engine, key_store, [*made[:-1], wide])
    names, *lines = afterword("usage", "--requests").stdout.splitlines()
    assert names.split()[:3] == ["ID", "KEY", "ID"]
    assert [line.split()[0] for line in lines] == [one.id for one in made]
    assert lines[-1].split()[3] == wide.user
    for n in range(3):
        key_store.create(KeyTerms(name=f"{'入' * n}x", rpm=10**n))
    names, *lines = afterword("keys", "list").stdout.splitlines()
    assert {line.index("sk-af-") + line.count("入") for line in lines} == {names.index("KEY")}


def test_what_clients_wrote_controls_neither_terminal_nor_spreadsheet(
    afterword: Afterword, spent: str
) -> None:
    table = afterword("usage", "--by", "user").stdout
    assert "\x1b" not in table
    assert "[bold]" in table
    users = list(csv.reader(io.StringIO(afterword("usage", "--by", "user", "--csv").stdout)))
    assert any(row[0].startswith("'=HYPERLINK") for row in users)


def test_the_database_is_checked(afterword: Afterword, spent: str, engine: sa.Engine) -> None:
    assert (
        afterword("db", "upgrade").stdout
        == f"the ledger is at step {REVISION} (it was at {REVISION})\n"
    )
    assert afterword("db", "check").stdout == "the ledger is whole\n"
    with engine.begin() as connection:
        connection.execute(sa.update(spending).values(used=1, reserved=5))
    done = afterword("db", "check")
    assert done.exit_code == 1
    assert f"{spent} used 150 tokens by its records, 1 by its days" in done.stdout
    assert f"{spent} used 150 tokens by its records, 1 by its months" in done.stdout
    assert f"{spent} has 5 tokens reserved in 2026-11, 0 by its reservations" in done.stdout


def test_sums_without_records_are_found(
    afterword: Afterword, spent: str, engine: sa.Engine
) -> None:
    """A month's sum is what most budgets are decided by."""
    row = {"key_id": "key-other", "period": "2026-11", "used": 9, "reserved": 0}
    with engine.begin() as connection:
        connection.execute(sa.insert(spending), row)
    done = afterword("db", "check")
    assert done.stdout == "key-other used 0 tokens by its records, 9 by its months\n"


def test_commands_say_which_ledger_they_mean(
    afterword: Afterword, database_url: str, tmp_path: Path
) -> None:
    place = tmp_path / "ledger.db" if database_url.startswith("sqlite") else database_url
    for words in (("keys", "create", "a"), ("keys", "list"), ("usage",), ("db", "check")):
        done = afterword(*words)
        assert done.exit_code == 0
        assert done.stderr.startswith(f"ledger: {place}\n")
        assert "ledger:" not in done.stdout


@pytest.mark.parametrize(
    ("url", "shown"),
    [("postgresql://u:pass@h/x", "postgresql://u:***@h/x"),
     ("postgresql://u:p@s/s@h/x", "postgresql://u:***@h/x"),
     ("postgresql://h/x?user=u&password=pass&sslmode=off",
      "postgresql://h/x?user=u&password=***&sslmode=off"),
     ("redis://:pass@h:1/0", "redis://:***@h:1/0"),
     ("rediss://h?PASSWORD=pass", "rediss://h?PASSWORD=***"),
     ("postgresql://h/x", "postgresql://h/x")],
)  # fmt: skip
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_key_for_models_that_nobody_serves(afterword: Afterword, tmp_path: Path) -> None:
    flags = ("keys", "create")
    served = afterword(*flags, "a", "--models", f"{EMBEDDED_MODEL},{LEGACY_NAME},none")
    assert "WARNING" not in served.stderr
    warned = afterword(*flags, "b", "--models", f"coder,{EMBEDDED_MODEL}")
    assert warned.exit_code == 0
    assert warned.stdout.startswith("sk-af-")
    assert "WARNING: nobody serves 'coder' (no server runs; the settings have" in warned.stderr
    with AliveLock(tmp_path / "journal", "p", Presence(("coder", "alias"))):
        assert "WARNING" not in afterword(*flags, "c", "--models", "coder,alias").stderr
        warned = afterword(*flags, "d", "--models", EMBEDDED_MODEL)
        assert "(running servers have alias, coder)" in warned.stderr
    with AliveLock(tmp_path / "journal", "p", Presence(("coder", "*"))):
        assert "WARNING" not in afterword(*flags, "e", "--models", "anything").stderr


def test_what_was_set_aside_is_named(afterword: Afterword, spent: str, tmp_path: Path) -> None:
    aside = SetAside(tmp_path / "journal")
    aside.file.parent.mkdir(exist_ok=True)
    aside.add([of_line("p1-000000.journal, line 7 at byte 900", "it is damaged", b"\xff{")])
    (tmp_path / "journal" / "p2-000000.journal").write_bytes(b"junk\n")
    done = afterword("db", "check")
    assert done.exit_code == 1
    first, second = done.stdout.splitlines()
    place = "p1-000000.journal, line 7 at byte 900"
    assert first == f"1 set aside in {aside.file}, the first from {place}: it is damaged"
    assert second.startswith("p2-000000.journal, line 1 at byte 0 cannot be read: a line of a ")
    aside.file.unlink()
    (tmp_path / "journal" / "p2-000000.journal").unlink()
    assert afterword("db", "check").stdout == "the ledger is whole\n"


def test_a_copy_is_whole(
    afterword: Afterword, spent: str, database_url: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.db"
    done = afterword("db", "backup", str(copy))
    if database_url.startswith("postgresql"):
        assert "pg_dump" in str(done.exception)
        return
    assert done.exit_code == 0
    again = CliRunner().invoke(cli, ["db", "check", "--database", f"sqlite:///{copy}"])
    assert again.stdout == "the ledger is whole\n"
    engine = connect(parse_url(f"sqlite:///{copy}"))
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM usage")) == 3
    engine.dispose()
    assert "File exists" in str(afterword("db", "backup", str(copy)).exception)


def test_half_a_copy_is_none(
    afterword: Afterword, spent: str, database_url: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A disk that fills up is said in one line, and the next copy has the name again."""
    if database_url.startswith("postgresql"):
        return

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    copies = tmp_path / "copies"
    copies.mkdir()
    copy = copies / "copy.db"
    with monkeypatch.context() as patch:
        patch.setattr("afterword.ledger.database.contextlib.closing", full)
        done = afterword("db", "backup", str(copy))
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception) == f"{copy}: database or disk is full"
    assert list(copies.iterdir()) == []
    assert afterword("db", "backup", str(copy)).exit_code == 0
    assert list(copies.iterdir()) == [copy]


def test_a_copy_has_its_name_once_it_is_whole(
    afterword: Afterword, spent: str, database_url: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A kill in the middle of it would leave nothing that looks like a copy."""
    if database_url.startswith("postgresql"):
        return
    copy = tmp_path / "copy.db"
    seen: list[bool] = []

    def look(file: Path) -> sqlite3.Connection:
        seen.append(copy.exists())
        return sqlite3.Connection(file)

    monkeypatch.setattr("afterword.ledger.database.sqlite3.connect", look)
    assert afterword("db", "backup", str(copy)).exit_code == 0
    assert seen == [False]
    assert copy.exists()


def test_a_ledger_of_an_older_version_is_copied(
    afterword: Afterword, spent: str, engine: sa.Engine, database_url: str, tmp_path: Path
) -> None:
    """Before its upgrade, as the docs advise."""
    if database_url.startswith("postgresql"):
        return
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0000'"))
    assert "older version" in str(afterword("usage").exception)
    copy = tmp_path / "copy.db"
    assert afterword("db", "backup", str(copy)).stdout == f"copied to {copy}\n"
    with contextlib.closing(sqlite3.connect(copy)) as found:
        assert found.execute("SELECT count(*) FROM usage").fetchone() == (3,)


@pytest.mark.parametrize("words", [("backup", "copy.db"), ("check",)])
def test_where_no_ledger_is_none_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """A folder's name may be a mistake: a copy of nothing is no backup."""
    monkeypatch.chdir(tmp_path)
    for flags in (("--data-dir", "typo"), ("--database", "sqlite:///typo.db")):
        done = CliRunner().invoke(cli, ["db", *words, *flags])
        assert isinstance(done.exception, ConfigError)
        assert str(done.exception).endswith(": there is no ledger")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.db").touch(0o600)
    done = CliRunner().invoke(cli, ["db", *words, "--database", "sqlite:///empty.db"])
    assert done.exit_code == 1
    assert not (tmp_path / "copy.db").exists()


@pytest.mark.parametrize(
    ("url", "says"),
    [("nonsense", "cannot be parsed"), ("mysql://x/y", "expected 'sqlite' or 'postgresql'"),
     ("sqlite://", "would be lost"), ("sqlite:////nowhere/x.db", "unable to open database file"),
     ("postgresql://127.0.0.1:9/x?connect_timeout=1", "cannot be used")],
)  # fmt: skip
def test_databases_that_cannot_be_used(url: str, says: str) -> None:
    done = CliRunner().invoke(cli, ["keys", "list", "--database", url])
    assert isinstance(done.exception, ConfigError)
    assert says in str(done.exception)
