"""Files of a ledger are for their owner alone, whatever was there before; the log says what was."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from afterword.core.errors import ConfigError
from afterword.ledger import journal
from afterword.ledger.access import Clocks
from afterword.ledger.alive import AliveLock
from afterword.ledger.command import open_for_command
from afterword.ledger.database import backup, connect, open_database, prepare, sqlite_url
from afterword.ledger.folder import make_folder, make_private
from afterword.ledger.journal import Journal
from afterword.ledger.open_ledger import LedgerOptions, open_ledger
from afterword.ledger.other_journals import orphaned_bytes
from afterword.ledger.presence import Presence
from afterword.ledger.process import ProcessIdentity
from afterword.ledger.set_aside import SetAside, of_line
from ledger.values import record


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids="umask {:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def everything(folder: Path) -> dict[str, int]:
    """Modes of a folder and of what is in it."""
    return {str(path.relative_to(folder)): mode(path) for path in [folder, *folder.rglob("*")]}


@pytest.mark.usefixtures("umask")
def test_what_is_new_is_closed(tmp_path: Path) -> None:
    data = tmp_path / "a" / "data"
    # A umask of 0777 would keep even root's SQLite out of a parent that the operator makes.
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o700)
    database = open_database(data, None)
    journals = data / "journal"
    with (
        database.begin() as connection,
        Journal(journals, "p", limit_bytes=64 << 20) as journal,
        AliveLock(journals, "p", Presence()),
    ):
        connection.exec_driver_sql("UPDATE state SET keys_version = 2")
        journal.admit(replace(record("r"), status="lost"))
        SetAside(journals).add([of_line("x", "y", b"z")])
        backup(database, data / "copy.db")
        found = everything(data)
    database.dispose()
    assert {"ledger.db", "ledger.db-wal", "ledger.db-shm", "copy.db"} <= found.keys()
    assert {f"journal/{n}" for n in ("p-000000.journal", "p.alive", "set-aside.jsonl")} <= (
        found.keys()
    )
    assert {name: one for name, one in found.items() if one != 0o600} == {
        ".": 0o700, "journal": 0o700,
    }  # fmt: skip


def test_what_was_open_is_closed_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    (data / "journal").mkdir(parents=True)
    file = data / "ledger.db"
    with sqlite3.connect(file) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("CREATE TABLE x (y)")
        (data / "journal" / "k1-000000.journal").write_bytes(b"")
        for path in (data, *data.rglob("*")):
            path.chmod(0o777)
        make_folder(data)
        found = everything(data)
    assert {name: one for name, one in found.items() if one != 0o600} == {
        ".": 0o700, "journal": 0o700,
    }  # fmt: skip
    for name in found:
        path = data if name == "." else data / name
        assert f"{path} was open to others (mode 777) and is closed now" in caplog.text
    caplog.clear()
    make_folder(data)
    assert caplog.text == ""


def test_a_database_that_is_named_is_closed_too(tmp_path: Path) -> None:
    file = tmp_path / "x [1].db"
    file.touch(0o644)
    engine = connect(sqlite_url(file))
    prepare(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE state SET keys_version = 2")
        assert {mode(path) for path in tmp_path.iterdir()} == {0o600}
    engine.dispose()


def test_a_link_leads_to_a_closed_file_or_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there, missing = tmp_path / "there.db", tmp_path / "missing.db"
    there.touch(0o644)
    for target in (there, missing):
        link = tmp_path / f"link to {target.name}"
        link.symlink_to(target)
        engine = connect(sqlite_url(link))
        prepare(engine)
        engine.dispose()
    assert mode(missing) == 0o600
    # It may be anybody's file.
    assert mode(there) == 0o644
    assert f"{there}, which is open to others (mode 644): close it" in caplog.text
    assert "missing" not in caplog.text


def test_a_backup_follows_no_link(tmp_path: Path) -> None:
    database = open_database(tmp_path / "data", None)
    link = tmp_path / "copy.db"
    link.symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(ConfigError, match="File exists"):
        backup(database, link)
    assert not (tmp_path / "elsewhere.db").exists()
    database.dispose()


@pytest.mark.parametrize("file", [".", "/"])
def test_a_backup_needs_a_files_name(tmp_path: Path, file: str) -> None:
    database = open_database(tmp_path, None)
    with pytest.raises(ConfigError, match="is a folder"):
        backup(database, Path(file))
    database.dispose()


async def test_a_journal_that_cannot_be_made_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal, "reserve_space", full)
    clocks = Clocks(time.monotonic, time.time)
    opened = open_ledger(
        None, LedgerOptions(folder=tmp_path), ProcessIdentity("k1", "host", 1), clocks=clocks,
        entropy=os.urandom,
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        await opened.__aenter__()
    said = f"{tmp_path / 'journal'}: no journal can be kept here: No space left on device"
    assert str(caught.value) == said


@pytest.mark.parametrize("kind", ["sticky", "with folders of others", "home", "of the system"])
def test_a_folder_that_others_need_stays_open_and_is_named(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o1777 if kind == "sticky" else 0o755)
    if kind == "with folders of others":
        (data / "site").mkdir()
    elif kind == "home":
        monkeypatch.setenv("HOME", str(data))
    elif kind == "of the system":
        monkeypatch.setattr(Path, "resolve", lambda self: Path("/var"))
    (data / "ledger.db").touch(0o644)
    make_folder(data)
    assert mode(data) in {0o755, 0o777}
    assert mode(data / "ledger.db") == 0o600
    assert f"{data} is open to others" in caplog.text
    assert "and stays so, because" in caplog.text


def test_what_cannot_be_closed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    data.chmod(0o755)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    make_private(data)
    assert "(mode 755), and that cannot be changed: Operation not permitted" in caplog.text


def test_a_folder_of_another_user_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    make_private(data)
    assert f"{data} belongs to user {os.getuid()}, not to this one (4242)" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_makes_in_a_services_folder_is_the_services(tmp_path: Path) -> None:
    """As with ``sudo afterword keys create`` before the first start of the unit."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    os.chown(data, 4242, 4243)
    database = open_database(data, None)
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE state SET keys_version = 2")
        owners = {(path.stat().st_uid, path.stat().st_gid) for path in data.iterdir()}
    database.dispose()
    make_private(data / "journal")
    assert (data / "journal").stat().st_uid == 4242
    assert owners == {(4242, 4243)}


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(ConfigError, match="the ledger cannot be kept here"):
        make_folder(tmp_path / "data")


def test_a_folder_that_is_closed_to_this_user_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a service's data folder is to the person who types a command."""
    data = tmp_path / "data"
    (data / "journal").mkdir(parents=True)
    stat = Path.stat

    def closed(self: Path, **how: bool) -> os.stat_result:
        if data in self.parents:
            raise PermissionError(13, "Permission denied")
        return stat(self, **how)

    monkeypatch.setattr(Path, "stat", closed)
    monkeypatch.setattr(os.path, "exists", lambda _: False)
    assert orphaned_bytes(data / "journal") == 0
    with (
        pytest.raises(ConfigError, match=r"cannot be kept here .*Permission denied"),
        open_for_command(data, None, prepared=True),
    ):
        pytest.fail("it was opened")


def test_nothing_is_logged_without_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        make_folder(tmp_path / "data")
        make_folder(tmp_path / "data")
    assert caplog.text == ""
