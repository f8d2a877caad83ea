"""The small clients of ``examples/clients`` run, and ``requests.http`` is answered."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from afterword.engine.toy import toy_engine
from conftest import make_client
from support.asgi import Client
from support.http_server import http_server

EXAMPLES = Path(__file__).parents[2] / "examples"
CLIENTS = EXAMPLES / "clients"
SHOWN = {"model": "toy", "prompt": "Say this is a test", "max_tokens": 7, "temperature": 0}
COMMANDS: dict[str, Callable[[Path], Sequence[Sequence[str | Path]]]] = {
    "complete.py": lambda file: [[sys.executable, file]],
    "complete.mjs": lambda file: [["node", file]],
    "complete.sh": lambda file: [["sh", file]],
    "Complete.java": lambda file: [["java", file]],
    "complete.go": lambda file: [["go", "run", file]],
    "complete.php": lambda file: [["php", file]],
    "complete.rs": lambda file: [["rustc", "-o", "complete", file], ["./complete"]],
}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Client]]:
    engine = toy_engine()
    client = make_client({"toy": engine})
    with http_server(client.app) as server:
        yield f"http://127.0.0.1:{server.port}/v1", client
    asyncio.run(engine.aclose())


def test_every_client_has_a_command() -> None:
    there = {file.name for file in CLIENTS.iterdir() if file.suffix != ".md"}
    assert there == COMMANDS.keys()


def run(name: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Compile a client if its language wants that, and run it. Skips without its language."""
    commands = COMMANDS[name](CLIENTS / name)
    for program in {str(command[0]) for command in commands}:
        if not program.startswith(".") and shutil.which(program) is None:
            pytest.skip(f"{program} is not on this machine")
    for command in commands:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=folder,
            env={**os.environ, **environment},
        )  # fmt: skip
        if command is not commands[-1]:
            assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("name", COMMANDS)
def test_a_client_prints_the_answer(name: str, served: tuple[str, Client], tmp_path: Path) -> None:
    base, client = served
    done = run(name, tmp_path, AFTERWORD_URL=base, AFTERWORD_MODEL="toy")
    assert done.returncode == 0, done.stderr
    answer = asyncio.run(client.complete(**SHOWN))
    text = answer["choices"][0]["text"]
    printed = done.stdout
    if printed.startswith("{"):
        printed = json.loads(printed)["choices"][0]["text"] + "\n"
    assert printed == text + "\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_client_sends_its_key(name: str, served: tuple[str, Client], tmp_path: Path) -> None:
    app = served[1].app
    seen = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            seen.append(dict(scope["headers"])[b"authorization"])
        await app(scope, receive, send)

    with http_server(watched) as server:
        base = f"http://127.0.0.1:{server.port}/v1"
        for more in ({}, {"AFTERWORD_KEY": "sk-one"}):
            run(name, tmp_path, AFTERWORD_URL=base, AFTERWORD_MODEL="toy", **more)
    assert seen == [b"Bearer unused", b"Bearer sk-one"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_client_says_why_it_is_refused(
    name: str, served: tuple[str, Client], tmp_path: Path
) -> None:
    """The server's message is worth more than a status: its reader learns what to change."""
    done = run(name, tmp_path, AFTERWORD_URL=served[0], AFTERWORD_MODEL="absent")
    assert done.returncode != 0
    assert "The model `absent` does not exist" in done.stderr
    assert done.stdout == ""


def test_the_requests_for_editors_are_answered(served: tuple[str, Client]) -> None:
    client = served[1]
    page = (EXAMPLES / "requests.http").read_text()
    parts = re.split(r"^###.*\n", page, flags=re.MULTILINE)[1:]
    assert len(parts) == 8
    for part in parts:
        shown = part.replace("{{base}}", "").replace("{{model}}", "toy")
        head, _, body = shown.partition("\n\n")
        assert "Authorization: Bearer {{key}}" in head
        method, path = head.split("\n")[0].split()
        reply = asyncio.run(client.request(method, path, body.strip().encode()))
        assert reply.status == 200, (part, reply.body)
