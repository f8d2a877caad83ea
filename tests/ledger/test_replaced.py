"""A SQLite file that is moved, removed or replaced while servers run on it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from afterword.core.account import KeyTerms, UsageQuery
from afterword.core.errors import LedgerUnavailable
from afterword.ledger.audit import check
from afterword.ledger.database import backup, connect, prepare, sqlite_url
from afterword.ledger.keys import KeyStore
from afterword.ledger.process import ProcessIdentity
from afterword.ledger.record_writer import Claim
from afterword.ledger.store import UsageStore
from afterword.ledger.tables import spending
from afterword.ledger.writer import LedgerWriter
from ledger.values import NOW, Hand, record


class House:
    """A ledger's file in a folder, and a server's writer on it."""

    def __init__(self, folder: Path, hand: Hand) -> None:
        self.file = folder / "ledger.db"
        self.hand = hand
        self.engine = self.open()
        journals = folder / "journal"
        journals.mkdir()
        self.writer = LedgerWriter(
            self.engine, ProcessIdentity("p", "host", 1), journals, clock=hand,
            on_written=lambda _: None,
        )  # fmt: skip
        self.keys = KeyStore(self.engine, clock=lambda: NOW, entropy=random.Random(5).randbytes)
        self.flush()

    def open(self) -> sa.Engine:
        """A database as a command opens it."""
        opened = connect(sqlite_url(self.file))
        prepare(opened)
        return opened

    def flush(self) -> None:
        """What a server does in a second."""
        for _ in range(2):
            self.hand.now_s += 1
            self.writer.flush()

    def reserve(self, request_id: str, tokens: int) -> int | None:
        asked = self.writer.claim(
            Claim(id=request_id, key_id="k", period="2026-11", tokens=tokens, budget_tokens=100)
        )
        self.writer.flush()
        return asked.result()

    def spent(self) -> tuple[int, int]:
        """Used and reserved this month."""
        opened = self.open()
        with opened.connect() as connection:
            row = connection.execute(
                sa.select(spending.c.used, spending.c.reserved).where(
                    spending.c.key_id == "k", spending.c.period == "2026-11"
                )
            ).one()
        opened.dispose()
        return row.used, row.reserved

    def recorded(self) -> list[str]:
        """The requests in the file of the ledger's name, which is whole."""
        opened = self.open()
        assert check(opened) == []
        found = [one.id for one in UsageStore(opened).requests(UsageQuery())]
        opened.dispose()
        return found


@pytest.fixture
def house(tmp_path: Path, hand: Hand) -> Iterator[House]:
    made = House(tmp_path, hand)
    yield made
    if made.writer._connection is not None:
        made.writer._connection.close()
    made.engine.dispose()


def test_a_copy_in_its_place_gets_what_comes_next(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the copy does not know is lost, and nothing else. Requests that run stay reserved."""
    house.writer.ended(record("before"))
    house.flush()
    backup(house.engine, tmp_path / "copy.db")
    # This stands in the -wal file of the old one, which SQLite would read as the copy's.
    house.writer.ended(record("between"))
    house.flush()
    assert house.reserve("runs", 60) is None
    (tmp_path / "copy.db").rename(house.file)
    house.writer.ended(record("after"))
    house.flush()
    assert house.writer.reachable
    assert house.writer.pending_writes == 0
    assert house.recorded() == ["after", "before"]
    assert house.spent() == (20, 60)
    assert house.reserve("too much", 21) == 20
    house.writer.ended(record("runs", tokens=30))
    house.flush()
    assert house.spent() == (50, 0)
    assert caplog.text.count("its file was moved, removed or replaced") == 1
    assert caplog.text.count("the database is another file than before") == 1


def test_a_file_that_is_away_for_a_while_loses_nothing(house: House, tmp_path: Path) -> None:
    assert house.reserve("runs", 60) is None
    house.file.rename(tmp_path / "elsewhere.db")
    house.writer.ended(record("meanwhile"))
    house.flush()
    assert not house.writer.reachable
    with pytest.raises(LedgerUnavailable):
        house.reserve("no", 1)
    # Nobody makes an empty one in its place.
    assert not house.file.exists()
    (tmp_path / "elsewhere.db").rename(house.file)
    house.flush()
    assert house.writer.reachable
    assert house.recorded() == ["meanwhile"]
    assert house.spent() == (10, 60)


@pytest.mark.parametrize("left", [(), ("-wal", "-shm")])
def test_a_ledger_that_is_made_anew(house: House, left: tuple[str, ...]) -> None:
    """Its keys hold, and those of the old one do not, whatever numbers their changes have."""
    old = house.keys.create(KeyTerms(name="old")).secret
    house.flush()
    assert house.writer.keyring.find(old, NOW) is not None
    for end in {"", "-wal", "-shm"}.difference(left):
        Path(f"{house.file}{end}").unlink()
    opened = house.open()
    store = KeyStore(opened, clock=lambda: NOW, entropy=random.Random(6).randbytes)
    new = store.create(KeyTerms(name="new")).secret
    house.flush()
    assert house.writer.keyring.find(old, NOW) is None
    assert house.writer.keyring.find(new, NOW) is not None
    # Operators see the new one, too.
    assert [view.terms.name for view in house.keys.all()] == ["new"]
    opened.dispose()


def test_an_empty_file_in_its_place_lets_nobody_in(house: House) -> None:
    house.keys.create(KeyTerms(name="k"))
    house.flush()
    house.file.unlink()
    house.file.touch()
    house.flush()
    assert house.writer.reachable
    assert house.writer.keyring.needed
    house.writer.ended(record("a"))
    house.flush()
    assert house.recorded() == ["a"]


def test_what_is_no_ledger_is_away(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "junk").write_bytes(random.Random(3).randbytes(50_000))
    shutil.copy(tmp_path / "junk", tmp_path / "more junk")
    (tmp_path / "junk").rename(house.file)
    house.writer.ended(record("a"))
    house.flush()
    assert not house.writer.reachable
    assert house.writer.pending_writes == 1
    # It is not touched.
    assert house.file.read_bytes() == (tmp_path / "more junk").read_bytes()
    house.file.unlink()
    house.open().dispose()
    house.flush()
    assert house.recorded() == ["a"]
    assert "Traceback" not in caplog.text
