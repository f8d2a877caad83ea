"""The Makefile: each target stands once, is phony, and is in the list of `make help`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Makefile").read_text()
PHONY = " ".join(re.findall(r"^\.PHONY: (.*)$", TEXT, re.MULTILINE)).split()
INNER = {"python"}
"""Targets that others need, and nobody names."""


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True)


def test_targets_stand_once_and_are_phony() -> None:
    targets = re.findall(r"^([a-z-]+):", TEXT, re.MULTILINE)
    assert sorted(targets) == sorted(set(targets)) == sorted(PHONY)


def test_help_lists_all_targets_but_inner_ones() -> None:
    done = make("help")
    assert done.stderr == ""
    listed = {line.split("\t")[0] for line in done.stdout.splitlines()}
    assert listed == set(PHONY) - INNER
