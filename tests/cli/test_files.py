"""Connections do not take the files that the ledger and models need, and the doctor says so."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from afterword.cli.checkup import surroundings
from afterword.cli.files import KEPT_FILES, allow_connections
from afterword.config import Settings

Limits = list[tuple[int, int]]
ENDLESS = resource.RLIM_INFINITY


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], Limits]:
    """Sets what the process is told. Returns what it asks for."""

    def set_to(soft: int, hard: int) -> Limits:
        asked: Limits = []
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
        monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: asked.append(wanted))
        return asked

    return set_to


@pytest.mark.parametrize(
    ("soft", "hard", "most", "each", "fit", "raised"),
    [
        (1024, 524_288, 1024, 1, 1024, 1024 + KEPT_FILES),
        (1024, ENDLESS, 5000, 2, 5000, 10_000 + KEPT_FILES),
        (1024, 1024, 1024, 1, 1024 - KEPT_FILES, None),
        (1024, 2048, 5000, 2, (2048 - KEPT_FILES) // 2, 2048),
        (ENDLESS, ENDLESS, 5000, 2, 5000, None),
        (65_536, 65_536, 1024, 1, 1024, None),
        (64, 64, 1024, 1, 1, None),
    ],
)
def test_the_limit_is_raised_as_far_as_needed(
    limit: Callable[[int, int], Limits],
    soft: int, hard: int, most: int, each: int, fit: int, raised: int | None,
) -> None:  # fmt: skip
    asked = limit(soft, hard)
    assert allow_connections(most, each=each) == fit
    assert asked == ([] if raised is None else [(raised, hard)])


@pytest.mark.parametrize(
    ("soft", "hard", "model", "needed"),
    [
        (64, 1128, "toy", None),
        (64, ENDLESS, "toy", None),
        (1127, 1127, "toy", 1128),
        (1128, 2127, "llamacpp+http://127.0.0.1:1/v1", 2128),
    ],
)
def test_the_doctor_counts_as_the_server_does(
    limit: Callable[[int, int], Limits], tmp_path: Path,
    soft: int, hard: int, model: str, needed: int | None,
) -> None:  # fmt: skip
    limit(soft, hard)
    settings = Settings(models={"m": model}, max_connections=1000, data_dir=str(tmp_path))
    (files,) = [one for one in surroundings(settings) if one.name == "open files"]
    change = needed and f"ulimit -n {needed}: 1000 connections need so many files"
    assert files.change == change
