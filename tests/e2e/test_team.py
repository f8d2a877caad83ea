"""The server of a team as a process: keys, crashes, outages, signals, hostile connections."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import ssl
import statistics
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from afterword.core.account import KeyTerms, UsageQuery, UsageRecord
from afterword.ledger.audit import check
from afterword.ledger.database import connect, parse_url, prepare
from afterword.ledger.keys import KeyStore
from afterword.ledger.store import UsageStore
from afterword.ledger.tables import processes, reservations
from afterword.ledger.writer import FLUSH_S
from e2e.process import AFTERWORD, Server, run, serving
from e2e.wire import Stream
from standins.services import Postgres

BODY: dict[str, Any] = {"model": "tiny", "prompt": "a", "ignore_eos": True}
STREAMS = 64
LOG = logging.getLogger(__name__)


@dataclass
class House:
    """A ledger and a model, and a way to start servers on them."""

    folder: Path
    model: Path
    database: str
    key: str = ""

    @property
    def ledger(self) -> tuple[str, ...]:
        return ("--data-dir", str(self.folder / "data"), "--database", self.database)

    def create(self, name: str, **terms: Any) -> str:
        """Make a key without the command, which takes half a second. Returns its secret."""
        engine = connect(parse_url(self.database))
        prepare(engine)
        key_store = KeyStore(engine, clock=time.time, entropy=os.urandom)
        secret = key_store.create(KeyTerms(name=name, **terms)).secret
        engine.dispose()
        return secret

    def serving(
        self,
        *flags: str,
        name: str = "stderr",
        inherit: socket.socket | None = None,
        program: Sequence[str | Path] = (AFTERWORD,),
    ) -> AbstractContextManager[Server]:
        return serving(
            self.folder / name, "--model", f"tiny={self.model}", "--slots", "8", "--threads", "1",
            *self.ledger, *flags, inherit=inherit, program=program,
        )  # fmt: skip

    def records(self) -> dict[str, UsageRecord]:
        """Returns all records, and asserts that the sums agree with them."""
        engine = connect(parse_url(self.database))
        found = UsageStore(engine).requests(UsageQuery(), most=100_000)
        assert check(engine) == []
        engine.dispose()
        assert len({one.id for one in found}) == len(found)
        return {one.id: one for one in found}

    def left(self) -> tuple[int, int]:
        """Returns how many reservations and processes are in the database."""
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
    """On SQLite, for behaviour that does not depend on the database."""
    return House(tmp_path, tiny_model, f"sqlite:///{tmp_path}/ledger.db")


def get(server: Server, path: str, key: str | None = None, **more: Any) -> httpx2.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx2.get(server.url + path, headers=headers, **more)


# Who needs a key.


def test_another_address_needs_a_key_first(lite: House) -> None:
    command = ("serve", "--port", "0", "--host", "0.0.0.0", "--model")  # noqa: S104 - to be refused
    # The error comes before the server looks for a model.
    for model in (f"tiny={lite.model}", "tiny=nowhere.gguf"):
        done = run(*command, model, *lite.ledger)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "`afterword keys create NAME` makes one" in line
        assert "(or --no-auth lets" in line
    with lite.serving("--host", "0.0.0.0", "--no-auth", "true") as server:  # noqa: S104 - with a warning
        assert get(server, "/v1/models").status_code == 200
    assert "WARNING: no-auth" in (lite.folder / "stderr").read_text()
    key = lite.create("a")
    with lite.serving("--host", "0.0.0.0") as server:  # noqa: S104 - with a key
        assert get(server, "/v1/models").status_code == 401
        assert get(server, "/v1/models", key).status_code == 200
        assert get(server, "/health").status_code == 200


def test_keys_reach_running_servers(house: House) -> None:
    """Two servers on one database, without a restart."""
    assert FLUSH_S < 0.5
    with house.serving(name="one") as one, house.serving(name="two") as two:
        assert get(one, "/v1/models").status_code == 200
        key = run("keys", "create", "a", *house.ledger).stdout.strip()
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
    """SIGHUP takes another certificate, and open connections keep theirs."""
    files = {name: lite.folder / f"{name}.pem" for name in ("cert", "key")}
    certify(files["cert"], files["key"], "ec", "ec_paramgen_curve:P-256")
    flags = ("--certfile", str(files["cert"]), "--keyfile", str(files["key"]))
    with lite.serving(*flags) as server:
        assert server.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=files["cert"])
        assert get(server, "/v1/models", verify=trusted).status_code == 200
        assert presented(server) == files["cert"].read_text()
        body = {**BODY, "max_tokens": 2000, "stream": True}
        with httpx2.stream(
            "POST", f"{server.url}/v1/completions", json=body, verify=trusted, timeout=60
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            roll(lite, server, files)
            # An open connection keeps its certificate.
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.stop() == 0
    for wrong in (("--keyfile", flags[3]), ("--certfile", "/nowhere.pem")):
        done = run("serve", "--port", "0", "--model", f"tiny={lite.model}", *lite.ledger, *wrong)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


def roll(house: House, server: Server, files: dict[str, Path]) -> None:
    """Another certificate, of another kind; first its key is missing, then it is there."""
    before = files["cert"].read_text()
    key = house.folder / "new-key.pem"
    certify(files["cert"], key, "rsa", "rsa_keygen_bits:2048")
    server.process.send_signal(signal.SIGHUP)
    while "not reloaded" not in (house.folder / "stderr").read_text():
        pass
    assert presented(server) == before
    key.replace(files["key"])
    server.process.send_signal(signal.SIGHUP)
    while presented(server) == before:
        pass
    assert presented(server) == files["cert"].read_text()
    trusted = ssl.create_default_context(cafile=files["cert"])
    assert get(server, "/v1/models", verify=trusted).status_code == 200


def certify(certificate: Path, key: Path, kind: str, option: str) -> None:
    """Make a key and a certificate that this machine has signed itself."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", kind, "-pkeyopt", option,
         "-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip


def presented(server: Server) -> str:
    """The certificate that a new connection is shown, in PEM."""
    return ssl.get_server_certificate(("127.0.0.1", server.port))


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
    """What clients saw of their streams: usage by answer's id, None until the stream ended."""

    usage: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    whole: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def watch(self, server: Server, key: str, seed: int) -> None:
        body = {
            **BODY, "seed": seed, "max_tokens": 3 + 11 * seed % 173,
            "stream_options": {"include_usage": True}, "user": f"u{seed % 3}",
        }  # fmt: skip
        # The server is killed meanwhile.
        with suppress(OSError), closing(Stream(server.port, body, key=key)) as stream:
            chunk: dict[str, Any] = {}
            for frame in stream.frames():
                if frame == "[DONE]":
                    self.usage[chunk["id"]] = chunk["usage"]
                    self.whole.release()
                else:
                    chunk = json.loads(frame)
                    self.usage.setdefault(chunk["id"], None)


def test_kill_9_loses_no_answer(house: House, pytestconfig: pytest.Config) -> None:
    """64 streams at once, killed when a few have ended: as often as ``--kills`` says."""
    key = house.create("a", budget_tokens=10**8, tpm=10**8)
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
        # This server took over from the dead one before it listened.
        assert house.left() == (0, 1)
        records = house.records()
        assert server.stop() == 0
    answered = {request_id: usage for request_id, usage in seen.usage.items() if usage}
    assert len(answered) >= kills
    LOG.info("%d streams, %d answered, %d kills", len(seen.usage), len(answered), kills)
    for request_id, usage in answered.items():
        record = records[request_id]
        assert record.status == "answered"
        assert record.completion_tokens == usage["completion_tokens"]
        assert record.prompt_tokens == usage["prompt_tokens"]
    # No admitted request is missing either.
    assert seen.usage.keys() <= records.keys()
    assert house.left() == (0, 0)
    assert not list((house.folder / "data" / "journal").iterdir())


# Outages.


def test_a_database_that_comes_back(
    postgres: Postgres, tmp_path: Path, tiny_model: Path, pytestconfig: pytest.Config
) -> None:
    """Gone under load, for ``--outage-s``: keys with a budget wait, others go on, all is kept."""
    outage_s: float = pytestconfig.getoption("--outage-s")
    postgres.sql("CREATE DATABASE gone")
    house = House(tmp_path, tiny_model, postgres.url("gone"))
    free, budgeted = house.create("free"), house.create("b", budget_tokens=10**6)
    with house.serving() as server:
        ids = {complete(server, free).json()["id"], complete(server, budgeted).json()["id"]}
        postgres.stop()
        try:
            while complete(server, budgeted).status_code != 503:
                pass
            refused = complete(server, budgeted)
            assert refused.json()["error"]["code"] == "ledger_unavailable"
            assert refused.headers["retry-after"] == "1"
            began_s = time.monotonic()
            while len(ids) < 22 or time.monotonic() < began_s + outage_s:
                answer = complete(server, free)
                assert answer.status_code == 200
                ids.add(answer.json()["id"])
            ready = get(server, "/ready")
            assert (ready.status_code, ready.json()["ledger"]) == (200, "unreachable")
        finally:
            postgres.start()
        while (answer := complete(server, budgeted)).status_code == 503:
            pass
        ids.add(answer.json()["id"])
        assert server.stop() == 0
    records = house.records()
    assert ids <= records.keys()
    assert {one.status for one in records.values()} == {"answered"}
    assert house.left() == (0, 0)
    LOG.info("%d answered while the database was away for %.0f s", len(ids) - 3, outage_s)


def complete(server: Server, key: str, **more: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key}"}
    body = {**BODY, "max_tokens": 3, **more}
    return httpx2.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60)


def test_a_full_disk(lite: House) -> None:
    """A file system of 12 MB that is full: refused before it is computed, well afterwards."""
    disk = lite.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        house = House(disk, lite.model, f"sqlite:///{disk}/ledger.db")
        key = house.create("a", budget_tokens=10**6)
        with house.serving() as server:
            ids = [complete(server, key).json()["id"]]
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(b"x" * 4096)
            # A long name takes the journal's room faster.
            while (answer := complete(server, key, user="u" * 1000)).status_code == 200:
                ids.append(answer.json()["id"])
            assert answer.json()["error"]["code"] == "ledger_unavailable"
            filler.unlink()
            while (answer := complete(server, key)).status_code != 200:
                pass
            ids.append(answer.json()["id"])
            assert server.stop() == 0
        assert set(ids) <= house.records().keys()
        assert house.left() == (0, 0)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# Reloading.


def test_sighup_reads_limits_and_keys_again(lite: House) -> None:
    settings = lite.folder / "afterword.toml"
    settings.write_text("max_n = 2\n")
    with lite.serving("--config", str(settings)) as server:
        stream = Stream(server.port, {**BODY, "max_tokens": 2000})
        frames = stream.frames()
        next(frames)
        assert httpx2.post(f"{server.url}/v1/completions", json={**BODY, "n": 3}).status_code == 400
        settings.write_text("max_n = 3\nlog_level = 'debug'\n")
        server.process.send_signal(signal.SIGHUP)
        body = {**BODY, "n": 3, "max_tokens": 1}
        url = f"{server.url}/v1/completions"
        while httpx2.post(url, json=body, timeout=None).status_code != 200:
            pass
        facts = get(server, "/openapi.json").json()["components"]["schemas"]["CompletionRequest"]
        assert facts["properties"]["n"]["maximum"] == 3
        settings.write_text("max_n = 'many'\n")
        server.process.send_signal(signal.SIGHUP)
        while "not reloaded" not in (lite.folder / "stderr").read_text():
            pass
        # Nobody was dropped.
        assert list(frames)[-1] == "[DONE]"
        stream.close()
        assert httpx2.post(url, json=body, timeout=None).status_code == 200


@pytest.mark.parametrize("way", ["reuse_port", "socket"])
def test_a_rolling_restart_loses_no_request(lite: House, way: str) -> None:
    """Clients that ask all the time get answers all the time, from the old or from the new."""
    key = lite.create("a")
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as held:
        port = held.getsockname()[1]
        if way == "reuse_port":
            held.close()
            flags: tuple[str, ...] = ("--port", str(port), "--reuse-port", "true")
            start = partial(lite.serving, *flags)
        else:
            start = partial(lite.serving, inherit=held)
        asked = Asked(port, key)
        with start(name="old") as old:
            clients = [threading.Thread(target=asked.on_and_on, args=(i,)) for i in range(6)]
            for client in clients:
                client.start()
            asked.wait_for(20)
            with start(name="new") as new:
                assert old.stop() == 0
                asked.wait_for(40)
                asked.over = True
                for client in clients:
                    client.join()
                assert new.stop() == 0
    assert asked.failures == []
    records = lite.records()
    assert asked.ids <= records.keys()
    assert {records[one].status for one in asked.ids} == {"answered"}


@dataclass
class Asked:
    """Clients that never stop asking; each request is a connection of its own."""

    port: int
    key: str
    ids: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    over: bool = False
    answered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def on_and_on(self, seed: int) -> None:
        while not self.over:
            try:
                with closing(Stream(self.port, {**BODY, "max_tokens": 30, "seed": seed},
                                    key=self.key)) as stream:  # fmt: skip
                    *chunks, last = stream.frames()
                    assert last == "[DONE]"
                    self.ids.add(json.loads(chunks[0])["id"])
            except (OSError, ValueError, AssertionError) as error:
                self.failures.append(repr(error))
            self.answered.release()

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            self.answered.acquire()


# Hostile connections.


def test_hundreds_of_bad_connections_harm_nobody(lite: House) -> None:
    """Silent, slow, half-open, oversized and endless ones; an honest client is answered."""
    key = lite.create("a")
    flags = ("--read-timeout-s", "1", "--max-connections", "700")
    with lite.serving(*flags) as server, ExitStack() as opened:
        alone_ms = [taken_ms(server, key) for _ in range(40)]
        bad = [opened.enter_context(BadConnection(server.port, kind)) for kind in BAD * 100]
        for connection in bad:
            connection.begin()
        among_ms = []
        for _ in range(40):
            for connection in bad[:200]:
                connection.go_on()
            among_ms.append(taken_ms(server, key))
        medians = statistics.median(alone_ms), statistics.median(among_ms)
        LOG.info("median alone %.1f ms, with bad connections %.1f ms", *medians)
        # None of them stays.
        for connection in bad:
            connection.wait_for_the_end()
        assert complete(server, key).status_code == 200
        more = [opened.enter_context(BadConnection(server.port, "silent")) for _ in range(750)]
        assert sum(connection.is_closed_at_once() for connection in more[-40:]) == 40
        assert server.stop() == 0


def test_more_connections_than_files_leave_the_ledger_its_own(lite: House) -> None:
    """200 files: 128 are kept back, so 72 connections are taken, and the others are closed."""
    key = lite.create("a", budget_tokens=10**6)
    limited = ("sh", "-c", 'ulimit -n 200; exec "$0" "$@"', AFTERWORD)
    with lite.serving(program=limited) as server, ExitStack() as opened:
        assert "at most 72 are taken" in (lite.folder / "stderr").read_text()
        client = opened.enter_context(
            httpx2.Client(headers={"authorization": f"Bearer {key}"}, timeout=60)
        )
        asked = partial(client.post, f"{server.url}/v1/completions", json={**BODY, "max_tokens": 3})
        ids = [asked().json()["id"]]
        silent = [opened.enter_context(BadConnection(server.port, "silent")) for _ in range(300)]
        assert all(connection.is_closed_at_once() for connection in silent[80:])
        ids += [asked().json()["id"] for _ in range(3)]
        for connection in silent:
            connection.__exit__()
        # There is room as soon as the server has seen that they left.
        while len(ids) < 5:
            with suppress(httpx2.TransportError):
                ids.append(complete(server, key).json()["id"])
        assert server.stop() == 0
    assert set(ids) <= lite.records().keys()


def taken_ms(server: Server, key: str) -> float:
    """Returns the milliseconds that an honest client waits for its answer."""
    began_s = time.monotonic()
    assert complete(server, key).status_code == 200
    return (time.monotonic() - began_s) * 1000


BAD = ("silent", "head", "body", "large", "endless")
STARTS = {
    "silent": b"",
    "head": b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n",
    "body": b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10000\r\n\r\n{",
    "large": b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n{",
    "endless": b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 100_000,
}


class BadConnection(AbstractContextManager["BadConnection"]):
    """A hostile connection."""

    def __init__(self, port: int, kind: str) -> None:
        self.kind = kind
        self.socket = socket.create_connection(("127.0.0.1", port))

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def begin(self) -> None:
        with suppress(OSError):
            self.socket.sendall(STARTS[self.kind])

    def go_on(self) -> None:
        """Send one more byte."""
        if self.kind in {"head", "body"}:
            with suppress(OSError):
                self.socket.send(b"x")

    def wait_for_the_end(self) -> None:
        with suppress(ConnectionError):
            while self.socket.recv(65_536):
                pass

    def is_closed_at_once(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True
