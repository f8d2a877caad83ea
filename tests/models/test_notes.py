"""Notes are kept from one start to the next."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from afterword.models.notes import Notes


class Found(msgspec.Struct, frozen=True):
    size: int
    name: str = ""


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


def test_a_value_is_kept_by_all_that_it_depends_on(notes: Notes) -> None:
    assert notes.read("size", ("a", 1), Found) is None
    notes.write("size", ("a", 1), Found(5))
    assert notes.read("size", ("a", 1), Found) == Found(5)
    assert notes.read("size", ("a", 2), Found) is None
    assert notes.read("weight", ("a", 1), Found) is None


@pytest.mark.parametrize("left", [b"", b"{", b'{"size":"x"}', b'{"size":5,"name":"\xff"}'])
def test_what_cannot_be_read_is_found_out_again(notes: Notes, tmp_path: Path, left: bytes) -> None:
    notes.write("size", ("a",), Found(5))
    (kept,) = (tmp_path / "notes").iterdir()
    kept.write_bytes(left)
    assert notes.read("size", ("a",), Found) is None
    notes.write("size", ("a",), Found(6))
    assert notes.read("size", ("a",), Found) == Found(6)


def test_a_place_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    notes = Notes(tmp_path / "file")
    notes.write("size", (), Found(5))
    assert notes.read("size", (), Found) is None


def test_everything_is_forgotten(notes: Notes, tmp_path: Path) -> None:
    assert notes.forget() == 0
    notes.write("size", ("a",), Found(5))
    notes.write("size", ("b",), Found(6))
    assert notes.forget() > 0
    assert list((tmp_path / "notes").iterdir()) == []


def test_threads_that_write_one_note_do_not_disturb_each_other(
    notes: Notes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The other one writes all of it between the first one's writing and its putting in place."""
    replace = Path.replace
    other = threading.Thread(target=notes.write, args=("size", ("a",), Found(6)))

    def late(part: Path, target: Any) -> Path:
        if other.ident is None:
            other.start()
            other.join()
        return replace(part, target)

    monkeypatch.setattr(Path, "replace", late)
    with caplog.at_level(logging.INFO):
        notes.write("size", ("a",), Found(5))
    assert notes.read("size", ("a",), Found) == Found(5)
    assert not caplog.records
