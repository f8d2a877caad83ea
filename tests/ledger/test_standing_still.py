"""Processes that stand still: on one machine they lose nothing, from afar what is late counts."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from afterword.core.account import UsageQuery
from afterword.ledger.alive import AliveLock, alive_folder, lives, presences, remove_dead
from afterword.ledger.audit import check
from afterword.ledger.database import connect, parse_url
from afterword.ledger.presence import Presence
from afterword.ledger.process import ProcessIdentity
from afterword.ledger.record_writer import Claim
from afterword.ledger.silence import DEAD_S, Silence
from afterword.ledger.store import UsageStore
from afterword.ledger.tables import processes, spending
from afterword.ledger.writer import LedgerWriter
from ledger.values import Hand, record

ROOT = Path(__file__).parents[2]
STOPPED = """
import sys
from concurrent.futures import Future
from pathlib import Path
from afterword.ledger.alive import AliveLock, alive_folder
from afterword.ledger.database import connect, parse_url
from afterword.ledger.journal import Journal
from afterword.ledger.presence import Presence
from afterword.ledger.process import ProcessIdentity
from afterword.ledger.record_writer import Claim
from afterword.ledger.writer import LedgerWriter

url, folder = sys.argv[1], Path(sys.argv[2])
engine = connect(parse_url(url))
with Journal(folder, "stopped", limit_bytes=64 << 20), AliveLock(
    alive_folder(engine, folder), "stopped", Presence(("toy",))
):
    writer = LedgerWriter(
        engine, ProcessIdentity("stopped", "host", 1), folder, clock=lambda: 0.0,
        on_written=lambda _: None,
    )
    asked = writer.claim(
        Claim(id="r", key_id="k", period="2026-11", tokens=400, budget_tokens=800)
    )
    writer.flush()
    print(asked.result(), flush=True)
    sys.stdin.read()
"""


def claim(request_id: str, tokens: int) -> Claim:
    return Claim(id=request_id, key_id="k", period="2026-11", tokens=tokens, budget_tokens=800)


def spent(engine: sa.Engine) -> tuple[int, int]:
    """Used and reserved."""
    with engine.connect() as connection:
        row = connection.execute(
            sa.select(spending.c.used, spending.c.reserved).where(spending.c.period == "2026-11")
        ).one()
    return row.used, row.reserved


@contextmanager
def stopped(url: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has reserved 400 tokens of 800 and then stands still."""
    command = [sys.executable, "-c", STOPPED, url, str(folder)]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "None\n"
        process.send_signal(signal.SIGSTOP)
        # Reaps nothing: it only waits until the process has stopped.
        os.waitpid(process.pid, os.WUNTRACED)
        try:
            yield process
        finally:
            process.kill()


MakeWriter = Callable[..., LedgerWriter]


@pytest.fixture
def make_writer(connected: Callable[[], sa.Engine], hand: Hand) -> Iterator[MakeWriter]:
    made: list[LedgerWriter] = []

    def make(name: str, journals: Path) -> LedgerWriter:
        journals.mkdir(exist_ok=True, parents=True)
        identity = ProcessIdentity(name, "host", 1)
        writer = LedgerWriter(
            connected(), identity, journals, clock=hand, on_written=lambda _: None
        )
        made.append(writer)
        return writer

    yield make
    for writer in made:
        if writer._connection is not None:
            writer._connection.close()


def watch(writer: LedgerWriter, hand: Hand, seconds: float) -> None:
    for _ in range(int(seconds / 5)):
        hand.now_s += 5
        writer.flush()


@pytest.mark.parametrize("apart", [False, True], ids=["one data folder", "two data folders"])
def test_a_stopped_process_keeps_what_it_holds(
    apart: bool, make_writer: MakeWriter, engine: sa.Engine, database_url: str, tmp_path: Path,
    hand: Hand,
) -> None:  # fmt: skip
    """It stood still for 48 s, and 1,206 tokens of 800 were used."""
    if apart and not database_url.startswith("sqlite"):
        pytest.skip("from another data folder a server's database shows no lock")
    folder = tmp_path / "shared" / "journal"
    folder.mkdir(parents=True)
    neighbour = make_writer("neighbour", tmp_path / "far" / "journal" if apart else folder)
    with stopped(database_url, folder) as process:
        neighbour.flush()
        watch(neighbour, hand, 600)
        refused = neighbour.claim(claim("s", 401))
        taken = neighbour.claim(claim("t", 400))
        neighbour.flush()
        assert refused.result() in {400, 0}
        assert taken.result() is None
        assert spent(engine) == (0, 800)
        process.kill()
        process.wait()
        watch(neighbour, hand, 2 * DEAD_S)
        assert spent(engine) == (0, 400)
    assert check(engine) == []


def test_from_afar_what_comes_late_counts(
    make_writer: MakeWriter, engine: sa.Engine, tmp_path: Path, hand: Hand,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """No lock can be seen. The late process learns it with its first claim, and takes no more."""
    late, neighbour = make_writer("late", tmp_path / "a"), make_writer("near", tmp_path / "b")
    held = late.claim(claim("r", 400))
    late.flush()
    assert held.result() is None
    neighbour.flush()
    watch(neighbour, hand, DEAD_S + 10)
    taken = neighbour.claim(claim("s", 800))
    neighbour.flush()
    assert taken.result() is None
    # A frozen machine's clock may not have moved: no heartbeat is due.
    late._heartbeat_at_s = hand.now_s + 5
    late._write_at_s = hand.now_s + 5
    more = late.claim(claim("more", 1))
    late.flush()
    assert more.result() == 0
    assert spent(engine) == (0, 1200)
    assert "taken for dead: its 1 reservations of 400 tokens" in caplog.text
    late.ended(record("r", tokens=390))
    neighbour.ended(record("s", tokens=700))
    for writer in (late, neighbour):
        writer._write_at_s = 0
        writer.flush()
    assert spent(engine) == (1090, 0)
    assert len(UsageStore(engine).requests(UsageQuery())) == 2
    refused = neighbour.claim(claim("t", 1))
    neighbour.flush()
    assert refused.result() == 0
    assert check(engine) == []


def test_what_has_ended_is_not_reserved_again(
    make_writer: MakeWriter, engine: sa.Engine, tmp_path: Path, hand: Hand
) -> None:
    """By a process that was taken for dead: nobody would give it back."""
    late, neighbour = make_writer("late", tmp_path / "a"), make_writer("near", tmp_path / "b")
    held = [late.claim(claim(name, 100)) for name in ("ended", "released", "runs")]
    late.flush()
    assert [one.result() for one in held] == [None] * 3
    late.ended(record("ended", tokens=30))
    late.released("released")
    hand.now_s += 1
    late.flush()
    assert spent(engine) == (30, 100)
    neighbour.flush()
    watch(neighbour, hand, DEAD_S)
    assert spent(engine) == (30, 0)
    late.flush()
    assert spent(engine) == (30, 100)
    assert check(engine) == []


def test_who_stood_still_saw_nobodys_silence(
    make_writer: MakeWriter, engine: sa.Engine, tmp_path: Path, hand: Hand
) -> None:
    """Both machines were frozen. The first to wake up does not bury the other."""
    one, other = make_writer("one", tmp_path / "a"), make_writer("other", tmp_path / "b")
    one.claim(claim("r", 400))
    one.flush()
    other.flush()
    hand.now_s += 3600
    other.flush()
    assert spent(engine) == (0, 400)
    hand.now_s += 5
    one.flush()
    watch(other, hand, DEAD_S - 10)
    assert spent(engine) == (0, 400)


def test_reservations_of_a_process_that_nobody_knows_come_back(
    make_writer: MakeWriter, engine: sa.Engine, tmp_path: Path, hand: Hand
) -> None:
    lost, alive = make_writer("lost", tmp_path / "a"), make_writer("alive", tmp_path / "b")
    lost.claim(claim("r", 400))
    lost.flush()
    with engine.begin() as connection:
        connection.execute(sa.delete(processes).where(processes.c.id == "lost"))
    alive.flush()
    watch(alive, hand, DEAD_S + 5)
    assert spent(engine) == (0, 0)
    assert check(engine) == []


def test_a_lock_lives_as_long_as_its_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    engine = connect(parse_url(url))
    here = alive_folder(engine, tmp_path / "journal")
    assert here == tmp_path / "journal"
    assert alive_folder(engine, tmp_path / "far" / "journal") == tmp_path / "ledger.db-alive"
    assert not lives(here, "p")
    with AliveLock(here, "p", Presence(("toy", "alias"))):
        assert lives(here, "p")
        assert not lives(here, "q")
        assert presences(here) == [Presence(("toy", "alias"))]
        (file,) = here.iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
        file.write_bytes(b'{"serves":["\xff"]}')
        assert presences(here) == [Presence()]
    assert not lives(here, "p")
    assert list(here.iterdir()) == []
    engine.dispose()


def test_a_lock_that_a_full_disk_refused_can_be_taken_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = AliveLock(tmp_path, "p", Presence())
    with monkeypatch.context() as patch:

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            lock.__enter__()
    assert list(tmp_path.iterdir()) == []
    with lock:
        assert lives(tmp_path, "p")


def test_a_lock_that_cannot_be_opened_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of another user's process, which lives or not."""
    with AliveLock(tmp_path, "p", Presence()), monkeypatch.context() as patch:

        def closed(*_: object) -> int:
            raise PermissionError(errno.EACCES, "Permission denied")

        patch.setattr(os, "open", closed)
        remove_dead(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1


def test_what_is_gone_is_silent_no_more() -> None:
    """Its reservations come back once, and the log says so once."""
    silence = Silence(0.0)
    for now_s in (0.0, 10.0, 20.0):
        assert silence.look([("p1", 7)], now_s) == []
    assert silence.look([("p1", 7)], 30.0) == ["p1"]
    assert silence.look([], 35.0) == []


@pytest.mark.parametrize(("pause_s", "found"), [(15.0, ["p1"]), (15.5, [])])
def test_who_paused_for_long_watches_anew(pause_s: float, found: list[str]) -> None:
    silence = Silence(0.0)
    silence.look([("p1", 7)], 0.0)
    silence.look([("p1", 7)], DEAD_S - pause_s)
    assert silence.look([("p1", 7)], DEAD_S) == found
