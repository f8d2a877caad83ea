"""The server of a team as a process: entrance, keys, crashes, signals, bad company."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from afterword.core.account import UsageQuery, UsageRecord
from afterword.ledger.clerk import TURN_S
from afterword.ledger.database import check, connect, parse_url
from afterword.ledger.records import processes, reservations
from afterword.ledger.store import UsageStore
from e2e.process import Server, run, serving
from e2e.wire import Stream

pytestmark = pytest.mark.e2e

BODY: dict[str, Any] = {"model": "tiny", "prompt": "a", "ignore_eos": True}
STREAMS = 64


@dataclass
class House:
    """A ledger, a model, and what starts servers on them."""

    folder: Path
    model: Path
    database: str
    key: str = ""

    @property
    def ledger(self) -> tuple[str, ...]:
        return ("--data-dir", str(self.folder / "data"), "--database", self.database)

    def create(self, name: str, *flags: str) -> str:
        done = run("keys", "create", name, *flags, *self.ledger)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def serving(self, *flags: str, name: str = "stderr") -> Any:
        return serving(
            self.folder / name, "--model", f"tiny={self.model}", "--slots", "8", "--threads", "1",
            *self.ledger, *flags,
        )  # fmt: skip

    def records(self) -> dict[str, UsageRecord]:
        """Everything in the database; that it agrees with itself is asserted."""
        engine = connect(parse_url(self.database))
        found = UsageStore(engine).requests(UsageQuery(), most=100_000)
        assert check(engine) == []
        engine.dispose()
        assert len({one.id for one in found}) == len(found)
        return {one.id: one for one in found}

    def left(self) -> tuple[int, int]:
        """Reservations, and processes that have not signed off."""
        engine = connect(parse_url(self.database))
        with engine.connect() as connection:
            counts = [len(connection.execute(t.select()).all()) for t in (reservations, processes)]
        engine.dispose()
        return counts[0], counts[1]


@pytest.fixture
def house(tmp_path: Path, tiny_model: Path, database_url: str) -> House:
    return House(tmp_path, tiny_model, database_url)


@pytest.fixture
def lite(tmp_path: Path, tiny_model: Path) -> House:
    """On SQLite, for what does not depend on the database."""
    return House(tmp_path, tiny_model, f"sqlite:///{tmp_path}/ledger.db")


def get(server: Server, path: str, key: str | None = None, **more: Any) -> httpx2.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx2.get(server.url + path, headers=headers, **more)


# The entrance.


def test_another_address_needs_a_key_first(lite: House) -> None:
    command = ("serve", "--port", "0", "--host", "0.0.0.0", "--model", f"tiny={lite.model}")  # noqa: S104 - to be refused
    done = run(*command, *lite.ledger)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "`afterword keys create NAME` makes one" in line
    assert "--no-auth true" in line
    with lite.serving("--host", "0.0.0.0", "--no-auth", "true") as server:  # noqa: S104 - with a warning
        assert get(server, "/v1/models").status_code == 200
    assert "WARNING: no-auth" in (lite.folder / "stderr").read_text()
    key = lite.create("a")
    with lite.serving("--host", "0.0.0.0") as server:  # noqa: S104 - with a key
        assert get(server, "/v1/models").status_code == 401
        assert get(server, "/v1/models", key).status_code == 200
        assert get(server, "/health").status_code == 200


def test_keys_reach_running_servers(house: House) -> None:
    """Two servers on one database; nobody restarts anything."""
    assert TURN_S < 0.5
    with house.serving(name="one") as one, house.serving(name="two") as two:
        assert get(one, "/v1/models").status_code == 200
        key = house.create("a")
        for server in (one, two):
            while get(server, "/v1/models").status_code == 200:
                pass
            assert get(server, "/v1/models", key).status_code == 200
        done = run("keys", "revoke", "a", *house.ledger)
        assert done.stdout == "a is revoked\n"
        for server in (one, two):
            while get(server, "/v1/models", key).status_code == 200:
                pass
        assert {one.stop(), two.stop()} == {0}
    assert house.left() == (0, 0)
    assert not list((house.folder / "data" / "journal").iterdir())


def test_tls(lite: House) -> None:
    files = {name: str(lite.folder / f"{name}.pem") for name in ("cert", "key")}
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1",
         "-keyout", files["key"], "-out", files["cert"]],
        check=True, capture_output=True,
    )  # fmt: skip
    flags = ("--certfile", files["cert"], "--keyfile", files["key"])
    with lite.serving(*flags) as server:
        assert server.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=files["cert"])
        assert get(server, "/v1/models", verify=trusted).status_code == 200
    for wrong in (("--keyfile", files["key"]), ("--certfile", "/nowhere.pem")):
        done = run("serve", "--port", "0", "--model", f"tiny={lite.model}", *lite.ledger, *wrong)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


def test_pages_of_named_origins_get_in(lite: House) -> None:
    page = {"origin": "https://app.example", "access-control-request-method": "POST",
            "access-control-request-headers": "authorization"}  # fmt: skip
    key = lite.create("a")
    with lite.serving("--cors-origins", "https://app.example") as server:
        asked = httpx2.options(server.url + "/v1/completions", headers=page)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == "https://app.example"
        headers = {"origin": "https://app.example", "authorization": f"Bearer {key}"}
        wrong = httpx2.post(server.url + "/v1/completions", headers=headers, json={})
        assert wrong.status_code == 400
        assert wrong.headers["access-control-allow-origin"] == "https://app.example"
        other = httpx2.options(server.url + "/v1/models", headers={**page, "origin": "https://x"})
        assert "access-control-allow-origin" not in other.headers
    with lite.serving() as server:
        asked = httpx2.options(server.url + "/v1/completions", headers=page)
        assert "access-control-allow-origin" not in asked.headers


# Crashes.


@dataclass
class Seen:
    """What clients saw of their streams: by answer's id, its usage once it was whole."""

    usage: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    whole: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def watch(self, server: Server, key: str, seed: int) -> None:
        body = {
            **BODY, "seed": seed, "max_tokens": 3 + 11 * seed % 173,
            "stream_options": {"include_usage": True}, "user": f"u{seed % 3}",
        }  # fmt: skip
        # The server is killed meanwhile.
        with suppress(OSError), closing(Stream(server.port, body, key=key)) as stream:
            for frame in stream.frames():
                if frame == "[DONE]":
                    self.usage[chunk["id"]] = chunk["usage"]
                    self.whole.release()
                else:
                    chunk = json.loads(frame)
                    self.usage.setdefault(chunk["id"], None)


def test_kill_9_loses_no_answer(house: House, pytestconfig: pytest.Config) -> None:
    """64 streams at once, killed when a few have ended: as often as ``--kills`` says."""
    key = house.create("a", "--budget-tokens", "100000000", "--tpm", "100000000")
    seen = Seen()
    kills: int = pytestconfig.getoption("--kills")
    for number in range(kills):
        with house.serving() as server:
            streams = [
                threading.Thread(target=seen.watch, args=(server, key, number * STREAMS + i))
                for i in range(STREAMS)
            ]
            for stream in streams:
                stream.start()
            for _ in range(1 + number * 7 % 40):
                seen.whole.acquire()
            server.process.kill()
            for stream in streams:
                stream.join()
    with house.serving() as server:
        # What the dead left was taken over before this one listened.
        assert house.left() == (0, 1)
        records = house.records()
        assert server.stop() == 0
    answered = {request_id: usage for request_id, usage in seen.usage.items() if usage}
    assert len(answered) >= kills
    for request_id, usage in answered.items():
        record = records[request_id]
        assert record.status == "answered"
        assert record.completion_tokens == usage["completion_tokens"]
        assert record.prompt_tokens == usage["prompt_tokens"]
    # Of what was admitted nothing is missing either.
    assert seen.usage.keys() <= records.keys()
    assert house.left() == (0, 0)
    assert not list((house.folder / "data" / "journal").iterdir())
