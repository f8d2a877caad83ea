"""Digests of files, and the file in which they are kept."""

from __future__ import annotations

import hashlib
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
