"""Journals with damage: it costs the line that it is in, every start succeeds, and all is named."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from afterword.core.account import UsageQuery
from afterword.ledger.alive import remove_dead
from afterword.ledger.database import connect, prepare, sqlite_url
from afterword.ledger.journal import Journal
from afterword.ledger.journal_lines import checksum, read_segment
from afterword.ledger.orphans import copy_live_journals, reap_journals, unreadable
from afterword.ledger.other_journals import orphaned_bytes, settled_records
from afterword.ledger.set_aside import FILE_NAME, SetAside, of_line
from afterword.ledger.store import UsageStore
from ledger.values import record
from support.journals import die

NAMES = [f"r{i}" for i in range(8)]


def written(folder: Path, process_id: str = "dead", names: list[str] = NAMES) -> Path:
    """A dead process' journal: each request was admitted and answered. Returns its file."""
    journal = Journal(folder, process_id, limit_bytes=64 << 20)
    journal.__enter__()
    for name in names:
        journal.admit(replace(record(name), status="lost", user="é\u2028"))
        journal.settle(replace(record(name), user="é\u2028"))
    die(journal)
    (path,) = folder.glob(f"{process_id}-*")
    return path


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of such a journal, each with its end."""
    data = written(tmp_path_factory.mktemp("lines") / "journal").read_bytes()
    return data.rstrip(b"\0").splitlines(keepends=True)


def statuses(data: bytes) -> dict[str, str]:
    return {line.record.id: line.record.status for line in read_segment(data, "x")[0]}


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_costs_its_line_alone(lines: list[bytes], at: int, bit: int) -> None:
    data = bytearray(b"".join(lines))
    at %= len(data)
    data[at] ^= 1 << bit
    hit = next(i for i in range(len(lines)) if at < sum(map(len, lines[: i + 1])))
    read, unread = read_segment(bytes(data), "x")
    whole = [one for i, one in enumerate(lines) if i != hit]
    kept, _ = read_segment(b"".join(whole), "x")
    assert [line for line in read if line in kept] == kept
    # The end of a line says nothing. With any other bit the line is named.
    ends = at + 1 == sum(map(len, lines[: hit + 1]))
    assert len(read) == len(lines) if ends else len(unread) in {1, 2}
    assert sum(map(len, map(str, unread))) < 4 * max(map(len, lines))


@given(start=st.integers(0, 10**6), size=st.integers(1, 4096), junk=st.booleans())
def test_a_hole_costs_the_lines_that_it_touches(
    lines: list[bytes], start: int, size: int, junk: bool
) -> None:
    data = bytearray(b"".join(lines))
    start %= len(data)
    size = min(size, len(data) - start)
    data[start : start + size] = random.Random(start).randbytes(size) if junk else b"\0" * size
    read, _ = read_segment(bytes(data), "x")
    at = 0
    for one in lines:
        if at + len(one) <= start or at >= start + size:
            (line,), _ = read_segment(one, "x")
            assert line in read
        at += len(one)


def test_old_lines_without_a_checksum_still_read(lines: list[bytes]) -> None:
    old = [one.partition(b" ")[2] for one in lines]
    assert read_segment(b"".join(old), "x") == read_segment(b"".join(lines), "x")


def unknown(line: bytes) -> bytes:
    """A line of another version, with the right checksum."""
    body = line.rstrip(b"\n").partition(b" ")[2].replace(b'"settled"', b'"refunded"')
    return b"%b %b\n" % (checksum(body), body)


Change = Callable[[bytes, list[bytes]], bytes]
LOST: dict[str, tuple[Change, int]] = {
    "truncated": (lambda data, lines: data[: sum(map(len, lines)) - 20], 0),
    "truncated and filled": (
        lambda data, lines: data[: sum(map(len, lines)) - 20].ljust(len(data), b"\0"), 0),
    "an unknown kind": (lambda data, lines: b"".join([*lines[:-1], unknown(lines[-1])]), 0),
    "a line of junk": (lambda data, lines: b"".join([*lines, b"\xff\xfe junk \x00 \x01\n"]), 0),
    "nulls in between": (lambda data, lines: b"\0\0\0\n".join([*lines, b""]), 0),
    "a line of a megabyte": (lambda data, lines: b"x" * 2**20 + b"\n" + b"".join(lines), 0),
    "windows' ends": (lambda data, lines: data.replace(b"\n", b"\r\n"), 0),
    "deep nesting": (lambda data, lines: b"[" * 100_000 + b"\n{" * 9 + b"".join(lines), 0),
    "only junk": (lambda data, lines: random.Random(3).randbytes(50_000), 8),
    "only nulls": (lambda data, lines: b"\0" * 50_000, 8),
    "empty": (lambda data, lines: b"", 8),
    "one byte": (lambda data, lines: b"{", 8),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_every_start_succeeds_and_names_what_was_lost(
    name: str, tmp_path: Path, lines: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "journal"
    path = written(folder)
    change, lost = LOST[name]
    path.write_bytes(change(path.read_bytes(), lines))
    written(folder, "other", ["s1", "s2"])
    database = connect(sqlite_url(tmp_path / "ledger.db"))
    prepare(database)
    before = unreadable(folder)
    assert orphaned_bytes(folder) > 0
    copy_live_journals(database.begin, folder)
    reap_journals(database.begin, folder)
    found = {one.id for one in UsageStore(database).requests(UsageQuery())}
    assert {"s1", "s2"} <= found
    assert len(found & set(NAMES)) == len(NAMES) - lost
    aside = SetAside(folder).entries()
    assert [one for one in folder.iterdir() if one.name != FILE_NAME] == []
    silent = name in {"nulls in between", "windows' ends", "only nulls", "empty"}
    assert bool(aside) != silent
    assert bool(before) != silent
    for entry in aside:
        assert entry.source.startswith("dead-000000.journal, line ")
        assert entry.source in caplog.text
    assert len(unreadable(folder)) == len({entry.reason for entry in aside})
    # The next start finds nothing new, and repeats nothing.
    reap_journals(database.begin, folder)
    assert SetAside(folder).entries() == aside
    database.dispose()


def test_what_is_named_like_a_journal_and_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "journal"
    written(folder)
    (folder / "k-folder-000000.journal").mkdir()
    (folder / "k-link-000000.journal").symlink_to(folder / "elsewhere")
    os.mkfifo(folder / "k-pipe-000000.journal")
    (folder / ".journal").write_bytes(b"")
    (folder / b"\xff-1.journal".decode("utf-8", "surrogateescape")).write_bytes(b"junk")
    database = connect(sqlite_url(tmp_path / "ledger.db"))
    prepare(database)
    for _ in range(2):
        reap_journals(database.begin, folder)
        copy_live_journals(database.begin, folder)
        settled_records(folder)
    assert len(UsageStore(database).requests(UsageQuery())) == len(NAMES)
    named = unreadable(folder)
    for name in ("k-folder", "k-link", "k-pipe"):
        assert any(name in sentence for sentence in named)
        assert caplog.text.count(f"{name}-000000.journal") == 1
    database.dispose()


def test_a_set_aside_file_with_damage_of_its_own(tmp_path: Path) -> None:
    aside = SetAside(tmp_path)
    aside.file.write_bytes(b"\xff junk\n{}\n")
    assert [entry.text for entry in aside.entries()] == ["\\xff junk", "{}"]
    assert len(unreadable(tmp_path)) == 1


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_set_aside_is_read_from_a_file_alone(tmp_path: Path, kind: str) -> None:
    """A pipe would be waited for until the end of time."""
    file = SetAside(tmp_path).file
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(tmp_path / "elsewhere")
    (named,) = unreadable(tmp_path)
    assert f"{file} cannot be read" in named
    with pytest.raises(OSError, match=r".+"):
        SetAside(tmp_path).add([of_line("x", "y", b"z")])


def test_a_folder_that_is_named_like_a_lock_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "p.alive").mkdir()
    (tmp_path / "q.alive").write_bytes(b"")
    os.mkfifo(tmp_path / "r.alive")
    remove_dead(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["p.alive"]
