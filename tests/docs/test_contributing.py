"""Contributors are sent to files that exist; public CI runs what they run, without secrets."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
parse_yaml: Any = yaml.safe_load
TEXT = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
JOBS: dict[str, Any] = parse_yaml(TEXT)["jobs"]
STEPS = [step for job in JOBS.values() for step in job["steps"]]


def test_files_that_contributors_are_sent_to_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = set(re.findall(r"`([\w./-]+(?:\.(?:py|md|js|yml)|/))`", text))
    assert len(files) > 30
    places = [ROOT, ROOT / "src" / "afterword", ROOT / "tests"]
    for file in files:
        # The page's modules are named without their folder.
        there = [place / file for place in places if (place / file).exists()]
        assert there or list((ROOT / "src").rglob(file)), file


def test_every_command_is_a_target_or_documented() -> None:
    page = (ROOT / "docs" / "install.md").read_text().replace("DIST", "dist")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [step["run"] for step in STEPS if "run" in step]
    makes = {command.split()[1] for command in commands if command.split()[0] == "make"}
    assert makes == {"check", "test-fast", "test", "wheel"}
    assert makes <= targets
    # Where the wheel is tried, there is no make.
    others = [command for command in commands if command.split()[0] != "make"]
    assert len(others) == 2
    assert all(command in page for command in others)


def test_actions_are_pinned_by_major_version() -> None:
    for step in STEPS:
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


def test_no_secret_is_needed() -> None:
    assert "secrets" not in TEXT
    assert parse_yaml(TEXT)["permissions"] == {"contents": "read"}


def test_the_oldest_python_is_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={JOBS['fast']['strategy']['matrix']['python'][0]}"
