"""Digests of files, and the file in which they are kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from afterword.models.digests import Digests


@pytest.mark.parametrize("left", [b"", b"{", b'{"x":1}', b'{"\xff":"x"}'])
def test_what_cannot_be_read_is_computed_again(tmp_path: Path, left: bytes) -> None:
    model, kept = tmp_path / "model", tmp_path / "digests.json"
    model.write_bytes(b"weights")
    kept.write_bytes(left)
    assert Digests(kept).of([model]) == hashlib.sha256(b"weights").hexdigest()
    assert kept.read_bytes() != left


def test_a_file_that_cannot_be_opened_costs_time_and_no_start(tmp_path: Path) -> None:
    """As one that another user made. A folder is such a file for every user."""
    parts = [tmp_path / "a", tmp_path / "b"]
    for part in parts:
        part.write_bytes(b"weights")
    (tmp_path / "digests.json").mkdir()
    digests = Digests(tmp_path / "digests.json")
    assert digests.of(parts[:1]) == hashlib.sha256(b"weights").hexdigest()
    assert len(digests.of(parts)) == 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "digests.json"]


def test_a_files_name_may_be_any_bytes(tmp_path: Path) -> None:
    """JSON cannot have those that are no UTF-8."""
    model = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.gguf"))
    model.write_bytes(b"weights")
    digests = Digests(tmp_path / "digests.json")
    alone, both = digests.of([model]), digests.of([model, model])
    assert alone == hashlib.sha256(b"weights").hexdigest()
    kept = (tmp_path / "digests.json").read_bytes()
    assert (digests.of([model]), digests.of([model, model])) == (alone, both)
    assert (tmp_path / "digests.json").read_bytes() == kept
