"""A server without keys as a process: what it imports, and its first key."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from e2e.process import run, serving

pytestmark = pytest.mark.e2e

BODY: dict[str, Any] = {"model": "tiny", "prompt": "a", "ignore_eos": True, "max_tokens": 3}
SHOWING_IMPORTS = """
import atexit, sys
atexit.register(lambda: print("imported", *sorted(sys.modules), file=sys.stderr))
from afterword.cli import main
main()
"""


def test_a_server_without_keys_imports_no_database(tmp_path: Path, tiny_model: Path) -> None:
    flags = ("--model", f"tiny={tiny_model}", "--data-dir", str(tmp_path / "data"))
    errors = tmp_path / "stderr"
    program = (sys.executable, "-c", SHOWING_IMPORTS)
    with serving(errors, *flags, program=program) as server:
        answer = httpx2.post(f"{server.url}/v1/completions", json=BODY, timeout=60).json()
        assert httpx2.get(f"{server.url}/metrics").status_code == 200
        assert server.stop() == 0
    (line,) = [line for line in errors.read_text().splitlines() if line.startswith("imported ")]
    modules = set(line.split())
    assert "afterword.ledger.access" in modules
    packages = {module.partition(".")[0] for module in modules}
    assert not packages & {"sqlalchemy", "alembic", "redis", "psycopg"}
    # Its records are there all the same.
    done = run("usage", "--requests", "--json", "--data-dir", tmp_path / "data")
    assert [json.loads(row)["id"] for row in done.stdout.splitlines()] == [answer["id"]]


def test_the_first_key_reaches_a_server_without_keys(tmp_path: Path, tiny_model: Path) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    with serving(tmp_path / "stderr", "--model", f"tiny={tiny_model}", *data) as server:
        url = f"{server.url}/v1/completions"
        ids = {httpx2.post(url, json=BODY, timeout=60).json()["id"]}
        key = run("keys", "create", "a", *data).stdout.strip()
        while httpx2.get(f"{server.url}/v1/models").status_code == 200:
            pass
        headers = {"authorization": f"Bearer {key}"}
        ids.add(httpx2.post(url, json=BODY, headers=headers, timeout=60).json()["id"])
        assert server.stop() == 0
    done = run("usage", "--requests", "--json", *data)
    assert {json.loads(row)["id"] for row in done.stdout.splitlines()} == ids
    assert not list((tmp_path / "data" / "journal").iterdir())
    assert "ERROR" not in (tmp_path / "stderr").read_text()
