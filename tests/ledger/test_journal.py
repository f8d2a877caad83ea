"""The journal keeps every settled request, however the process dies."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from afterword.ledger import journal as module
from afterword.ledger.journal import Journal
from afterword.ledger.other_journals import orphaned_journals
from ledger.values import record
from support.examples import examples
from support.journals import die

LIMIT = 64 << 20


def fill(journal: Journal, says: str) -> list[str]:
    """Admit requests until one is refused. Returns the admitted ones."""
    admitted: list[str] = []

    def admit_for_ever() -> None:
        while True:
            request_id = f"r{len(admitted)}"
            journal.admit(replace(record(request_id), status="lost"))
            admitted.append(request_id)

    with pytest.raises(OSError, match=says):
        admit_for_ever()
    return admitted


def left_in(folder: Path) -> dict[str, str]:
    """Returns how each request ended, as the next process finds it."""
    found = orphaned_journals(folder)
    ends = {one.id: one.status for orphan in found for one in orphan.read().records}
    for orphan in found:
        orphan.remove()
    assert list(folder.iterdir()) == []
    return {request_id: str(status) for request_id, status in ends.items()}


def test_refused_requests_fill_no_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine may refuse for hours: what was released waits for no database."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", 4000)
    with Journal(tmp_path, "p", limit_bytes=12_000) as journal:
        for number in range(200):
            refused = replace(record(f"r{number}"), status="lost")
            journal.admit(refused)
            journal.release(refused)
        assert journal.size_bytes == 4000
    assert list(tmp_path.iterdir()) == []


steps = st.lists(
    st.tuples(st.sampled_from(["admit", "settle", "release", "write"]), st.integers(0, 9)),
    max_size=60,
)


@given(steps=steps, segment_bytes=st.integers(1500, 6000), user=st.integers(0, 300))
@settings(max_examples=examples(200), deadline=None)
def test_nothing_settled_is_lost_and_nothing_released_is_found(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, int]],
    segment_bytes: int,
    user: int,
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SEGMENT_BYTES", segment_bytes)
        journal = Journal(folder, "p", limit_bytes=LIMIT)
        journal.__enter__()
        running: list[str] = []
        settled: list[str] = []
        written: set[str] = set()
        for number, (step, at) in enumerate(steps):
            if step == "admit":
                journal.admit(replace(record(f"r{number}"), status="lost", user="é" * user))
                running.append(f"r{number}")
            elif step == "settle" and running:
                request_id = running.pop(at % len(running))
                journal.settle(replace(record(request_id), user="é" * user))
                settled.append(request_id)
            elif step == "release" and running:
                journal.release(replace(record(running.pop(at % len(running))), status="lost"))
            elif step == "write":
                taken, settled = settled[:at], settled[at:]
                journal.written(taken)
                written.update(taken)
        assert journal.unsettled == len(running)
        die(journal)
    expected = dict.fromkeys(running, "lost") | dict.fromkeys(settled, "answered")
    found = left_in(folder)
    assert expected.items() <= found.items()
    # Requests that are in the database may be found again. They count once.
    assert found.keys() - expected.keys() <= written
    assert all(found[one] == "answered" for one in found.keys() & written)


@pytest.mark.slow
def test_a_torn_line_is_no_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "p", limit_bytes=LIMIT)
    journal.__enter__()
    journal.admit(replace(record("a"), status="lost"))
    journal.settle(record("a"))
    whole = journal._segments[-1].written_bytes
    journal.admit(replace(record("b"), status="lost"))
    end = journal._segments[-1].written_bytes
    (path,) = tmp_path.iterdir()
    die(journal)
    data = path.read_bytes()
    # The last byte is the end of the line, which says nothing.
    for cut, ids in [*((cut, ["a"]) for cut in range(whole, end - 1)), (end - 1, ["a", "b"])]:
        path.write_bytes(data[:cut].ljust(len(data), b"\0"))
        (orphan,) = orphaned_journals(tmp_path)
        assert [one.id for one in orphan.read().records] == ids
        orphan.close()


def test_the_living_are_left_alone(tmp_path: Path) -> None:
    with Journal(tmp_path, "p", limit_bytes=LIMIT) as journal:
        journal.admit(replace(record("a"), status="lost"))
        assert orphaned_journals(tmp_path) == []
    # The journal closed while one of its requests was not in the database.
    assert left_in(tmp_path) == {"a": "lost"}


def test_a_clean_end_leaves_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path, "p", limit_bytes=LIMIT) as journal:
        journal.admit(replace(record("a"), status="lost"))
        journal.settle(record("a"))
        journal.written(["a"])
    assert list(tmp_path.iterdir()) == []


def test_a_stream_that_runs_for_hours_does_not_fill_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 4096)
    with Journal(tmp_path, "p", limit_bytes=LIMIT) as journal:
        journal.admit(replace(record("long"), status="lost"))
        for i in range(500):
            journal.admit(replace(record(f"r{i}"), status="lost"))
            journal.settle(record(f"r{i}"))
            journal.written([f"r{i}"])
            assert len(journal._segments) <= 2
        journal.settle(record("long"))
        journal.written(["long"])


def test_a_full_journal_admits_nobody_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 4096)
    journal = Journal(tmp_path, "p", limit_bytes=3 * 4096)
    journal.__enter__()
    admitted = fill(journal, "the journal is full")
    for request_id in admitted:
        journal.settle(record(request_id))
    die(journal)
    assert left_in(tmp_path) == dict.fromkeys(admitted, "answered")


def test_a_journal_without_the_calls_of_linux(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS reserves no space by a call, and syncs a file with all that the system knows of it."""
    for name in ("posix_fallocate", "fdatasync"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(module, "SEGMENT_BYTES", 4096)
    journal = Journal(tmp_path, "p", limit_bytes=3 * 4096)
    journal.__enter__()
    admitted = fill(journal, "the journal is full")
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir()) >= journal.size_bytes
    journal.sync()
    for request_id in admitted:
        journal.settle(record(request_id))
    die(journal)
    assert left_in(tmp_path) == dict.fromkeys(admitted, "answered")


def test_a_full_disk_admits_nobody_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Admissions reserved room for their ends before the disk was full."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", 4096)
    journal = Journal(tmp_path, "p", limit_bytes=LIMIT)
    journal.__enter__()

    def full(descriptor: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "reserve_space", full)
    admitted = fill(journal, "No space left")
    assert len(list(tmp_path.iterdir())) == 1
    for request_id in admitted:
        journal.settle(record(request_id))
    assert admitted
    die(journal)
    assert left_in(tmp_path) == dict.fromkeys(admitted, "answered")


def test_a_folder_that_somebody_removes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests go on, and what is recorded from then on is found."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", 4096)
    folder = tmp_path / "journal"
    journal = Journal(folder, "p", limit_bytes=LIMIT)
    journal.__enter__()
    shutil.rmtree(folder)
    for i in range(100):
        journal.admit(replace(record(f"r{i}"), status="lost"))
        journal.settle(record(f"r{i}"))
    assert folder.stat().st_mode & 0o777 == 0o700
    die(journal)
    found = left_in(folder)
    assert found["r99"] == "answered"
    assert set(found.values()) == {"answered"}


@contextmanager
def failing_writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The disk fails inside, and that is said."""

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with pytest.raises(OSError, match="Input/output"):
            yield


def test_a_disk_that_fails_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a request cannot be written; its admission stays until it is in the database."""
    journal = Journal(tmp_path, "p", limit_bytes=LIMIT)
    journal.__enter__()
    journal.admit(replace(record("a"), status="lost"))
    with failing_writes(monkeypatch):
        journal.settle(record("a"))
    assert journal.unsettled == 0
    journal.written(["a"])
    journal.admit(replace(record("b"), status="lost"))
    journal.settle(record("b"))
    die(journal)
    assert left_in(tmp_path)["b"] == "answered"


def test_an_admission_that_cannot_be_taken_back_keeps_no_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody writes a released request to the database, so its lines would stay for ever."""
    with Journal(tmp_path, "p", limit_bytes=LIMIT) as journal:
        journal.admit(replace(record("a"), status="lost"))
        with failing_writes(monkeypatch):
            journal.release(record("a"))
        assert journal.unsettled == 0
    assert list(tmp_path.iterdir()) == []


def test_files_are_nobody_elses_business(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with Journal(folder, "p", limit_bytes=LIMIT):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert next(folder.iterdir()).stat().st_mode & 0o777 == 0o600
