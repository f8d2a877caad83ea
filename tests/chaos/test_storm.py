"""``make chaos`` for a moment, on a tiny model: every law holds, with a kill and a full disk."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from chaos.storm import StormPlan, storm
from chaos.troubles import small_disk
from chaos.verdict import Report, as_json
from support.tiny_gguf import make_gguf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
]


@contextmanager
def no_small_disk(folder: Path) -> Iterator[bool]:
    """Where no file system can be mounted, sizes of files are limited."""
    folder.mkdir()
    yield False


@pytest.mark.parametrize("disk", [small_disk, no_small_disk])
def test_a_moment_of_chaos(
    tmp_path: Path, disk: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chaos.storm.small_disk", disk)
    plan = StormPlan(
        seed=7, seconds=2, model=make_gguf(tmp_path / "tiny.gguf", context=1024), folder=tmp_path,
        kill_s=1, halt_s=1, lock_s=1, fill_s=1, jump_s=1, key_s=1, sample_s=1, longest_s=1,
        least_requests=20, calm_s=0,
    )  # fmt: skip
    report = storm(plan)
    assert report.reasons == [], "\n".join(report.table())
    assert report.troubles["kill -9"] >= 1
    assert sum(report.requests.values()) >= 20
    assert report.requests["whole"] >= 1
    total = sum(key.recorded_tokens for key in report.keys.values())
    assert total >= sum(key.received_tokens for key in report.keys.values()) > 0
    assert "steady" in {sample.server for sample in report.samples}
    assert msgspec.json.decode(as_json(report), type=Report) == report
    assert list(report.table())[-1] == "every law was kept"
