"""Keys: 256 random bits, kept as a hash; valid terms; an end within a second."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Sequence

import pytest
import sqlalchemy as sa

from afterword.core.account import KeyTerms, KeyView, Period
from afterword.core.errors import InvalidRequest
from afterword.ledger import keys
from afterword.ledger.database import reading
from afterword.ledger.key_reader import KeyReader
from afterword.ledger.keyring import Failures, Keyring
from afterword.ledger.keys import KeyStore, last_change
from afterword.ledger.periods import period_of
from afterword.ledger.secret import SECRET_PREFIX, masked
from afterword.ledger.tables import metadata, spending
from ledger.values import Hand

TERMS = KeyTerms(
    name="alice", models=("small", "coder"), rpm=10, tpm=1000, concurrent=2,
    budget_tokens=5000, budget_per="day",
)  # fmt: skip


def ring(engine: sa.Engine) -> Keyring:
    """The keys as a server that starts now reads them."""
    reader = KeyReader()
    while not reader.whole:
        with reading(engine) as connection:
            reader.look(connection)
    return reader.keyring


def version(engine: sa.Engine) -> int:
    with reading(engine) as connection:
        return last_change(connection).version


def test_a_key_is_random_and_kept_as_a_hash(key_store: KeyStore, engine: sa.Engine) -> None:
    made = key_store.create(TERMS)
    assert made.secret.startswith(SECRET_PREFIX)
    assert len(base64.urlsafe_b64decode(made.secret[len(SECRET_PREFIX) :] + "=")) == 32
    assert made.view.terms == TERMS
    assert made.view.prefix == made.secret[:10]
    assert key_store.find("alice") == made.view == key_store.find(made.view.id)
    digest = hashlib.sha256(made.secret.encode()).hexdigest()
    with engine.connect() as connection:
        kept = [
            str(row)
            for table in metadata.sorted_tables
            for row in connection.execute(table.select())
        ]
    assert any(digest in row for row in kept)
    assert not any(made.secret[10:] in row for row in kept)


def test_who_a_key_belongs_to(key_store: KeyStore, engine: sa.Engine, hand: Hand) -> None:
    assert not ring(engine).needed
    made = key_store.create(TERMS)
    found = ring(engine).find(made.secret, hand())
    assert found is not None
    assert (found.id, found.terms) == (made.view.id, TERMS)
    assert ring(engine).needed
    for wrong in ("", "sk-af-", made.secret[:-1], made.secret + "x", made.secret.upper(), "\udcff"):
        assert ring(engine).find(wrong, hand()) is None


def test_comparison_takes_constant_time(
    key_store: KeyStore, engine: sa.Engine, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    exactly = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return exactly(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    made = key_store.create(TERMS)
    ring(engine).find(made.secret, hand())
    digest = hashlib.sha256(made.secret.encode()).digest()
    assert compared == [(digest, digest)]


def test_revoked_expired_and_rotated_keys(
    key_store: KeyStore, engine: sa.Engine, hand: Hand
) -> None:
    first = key_store.create(KeyTerms(name="a", expires_at=hand() + 100))
    assert ring(engine).find(first.secret, hand()) is not None
    assert ring(engine).find(first.secret, hand() + 100) is None
    second = key_store.rotate("a", overlap_s=50)
    assert second.view.id == first.view.id
    assert second.secret != first.secret
    now = ring(engine)
    assert now.find(first.secret, hand() + 49) is not None
    assert now.find(first.secret, hand() + 50) is None
    assert now.find(second.secret, hand() + 50) is not None
    revoked = key_store.revoke("a")
    assert revoked.revoked_at == hand()
    assert key_store.revoke("a") == revoked
    assert ring(engine).find(second.secret, hand()) is None
    # A server whose keys are all revoked still needs a key.
    assert ring(engine).needed
    with pytest.raises(InvalidRequest, match="is revoked"):
        key_store.rotate("a", overlap_s=0)


def test_no_secret_is_made_that_nobody_takes(
    key_store: KeyStore, engine: sa.Engine, hand: Hand
) -> None:
    first = key_store.create(KeyTerms(name="a", expires_at=hand() + 100))
    hand.now_s += 99
    second = key_store.rotate("a", overlap_s=10)
    assert ring(engine).find(second.secret, hand()) is not None
    hand.now_s += 1
    before = version(engine)
    with pytest.raises(InvalidRequest, match="key 'a' has expired: make another one"):
        key_store.rotate("a", overlap_s=10)
    assert version(engine) == before
    assert key_store.find("a").id == first.view.id
    with pytest.raises(InvalidRequest, match="has to lie in the future"):
        key_store.create(KeyTerms(name="b", expires_at=hand()))
    assert [view.terms.name for view in key_store.all()] == ["a"]


def test_every_change_is_noticed(key_store: KeyStore, engine: sa.Engine) -> None:
    seen = [version(engine)]
    changes: list[Callable[[], object]] = [
        lambda: key_store.create(KeyTerms(name="a")),
        lambda: key_store.rotate("a", 0),
        lambda: key_store.revoke("a"),
    ]
    for change in changes:
        change()
        seen.append(version(engine))
    assert seen == sorted(set(seen))


def test_keys_are_listed_in_the_order_of_their_making(key_store: KeyStore, hand: Hand) -> None:
    for name in ("c", "a", "b"):
        key_store.create(KeyTerms(name=name))
        hand.now_s += 1
    assert [view.terms.name for view in key_store.all()] == ["c", "a", "b"]


def test_keys_are_read_in_pages(
    key_store: KeyStore, engine: sa.Engine, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many of them are never in memory, and those of one moment are on no two pages."""
    made = list[str]()
    for i in range(7):
        made.append(key_store.create(KeyTerms(name=f"k{i}")).view.id)
        hand.now_s += i == 5
    sizes = list[int]()
    page = KeyStore.page

    def count(self: KeyStore, after: KeyView | None) -> list[KeyView]:
        sizes.append(len(found := page(self, after)))
        return found

    monkeypatch.setattr(KeyStore, "page", count)
    monkeypatch.setattr(keys, "_PAGE_KEYS", 2)
    assert [view.id for view in key_store.all()] == [*sorted(made[:6]), made[6]]
    assert sizes == [2, 2, 2, 1, 0]


@pytest.mark.parametrize(
    ("terms", "param"),
    [(KeyTerms(name=""), "name"), (KeyTerms(name="a\nb"), "name"),
     (KeyTerms(name="x" * 201), "name"),
     (KeyTerms(name="a", rpm=0), "rpm"), (KeyTerms(name="a", tpm=-1), "tpm"),
     (KeyTerms(name="a", budget_tokens=2**60), "budget_tokens"),
     (KeyTerms(name="a", concurrent=0), "concurrent"),
     (KeyTerms(name="a", models=()), "models"), (KeyTerms(name="a", models=("",)), "models"),
     (KeyTerms(name="a", models=("m",) * 1001), "models")],
)  # fmt: skip
def test_terms_that_mean_nothing(key_store: KeyStore, terms: KeyTerms, param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        key_store.create(terms)
    assert error.value.param == param
    assert list(key_store.all()) == []


def test_a_name_belongs_to_one_key(key_store: KeyStore) -> None:
    key_store.create(KeyTerms(name="a"))
    with pytest.raises(InvalidRequest, match="'a' already: choose another name, or rotate"):
        key_store.create(KeyTerms(name="a"))
    key_store.revoke("a")
    with pytest.raises(InvalidRequest, match="'a' already: it is revoked, so choose another name"):
        key_store.create(KeyTerms(name="a"))
    with pytest.raises(InvalidRequest, match="no key 'b'"):
        key_store.find("b")


@pytest.mark.parametrize(
    ("secret", "shown"),
    [("sk-abcdefghijklmnopqrstuvwxyz", "sk-ab***yz"), ("short", "***"), ("x" * 15, "***"),
     ("", "***"), ("sk-af\x1b[31m\nabcdefghijkl\xe9", "sk-af***l?")],
)  # fmt: skip
def test_a_masked_key(secret: str, shown: str) -> None:
    assert masked(secret) == shown


def test_failures_wait_longer_each_time_and_are_forgiven() -> None:
    failures = Failures()
    waits = [failures.wait_s("10.0.0.1", 0) for _ in range(8)]
    assert waits[:5] == [0.5, 1, 2, 4, 8]
    assert set(waits[5:]) == {8}
    assert failures.wait_s("10.0.0.2", 0) == 0.5
    assert failures.wait_s("10.0.0.1", 61) == 0.5
    assert failures.count == 10


def test_failures_take_a_network_of_ipv6_for_one_source() -> None:
    failures = Failures()
    assert failures.wait_s("2001:db8::1", 0) == 0.5
    assert failures.wait_s("2001:db8::2", 0) == 1
    assert failures.wait_s("2001:db8:0:1::1", 0) == 0.5


def test_failures_take_mapped_addresses_of_ipv4_for_what_they_are() -> None:
    failures = Failures()
    assert failures.wait_s("::ffff:192.0.2.1", 0) == 0.5
    assert failures.wait_s("::ffff:192.0.2.2", 0) == 0.5
    assert failures.wait_s("192.0.2.1", 0) == 1


def test_failures_remember_so_many_sources_and_no_more() -> None:
    failures = Failures()
    for i in range(10_000):
        failures.wait_s(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", 0)
    assert len(failures._sources) == 4096


def test_a_list_of_many_keys_asks_no_more_than_one_of_few(
    key_store: KeyStore, engine: sa.Engine, hand: Hand
) -> None:
    """Each shows its newest secret and what its own period holds."""
    asked: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(*given: object) -> None:
        asked.append(str(given[2]))

    counts: list[int] = []
    periods: Sequence[Period] = ("day", "month")
    for per in periods:
        for i in range(9):
            key_store.create(KeyTerms(name=f"{per} {i}", budget_tokens=9, budget_per=per))
        hand.now_s += 1
        renewed = key_store.rotate(f"{per} 3", 60.0).view
        with engine.begin() as connection:
            period = period_of(hand(), per)
            row = {"key_id": renewed.id, "period": period, "used": 5, "reserved": 2}
            connection.execute(sa.insert(spending).values(row))
            connection.execute(sa.insert(spending).values({**row, "period": "2001-01"}))
        asked.clear()
        listed = list(key_store.all())
        counts.append(len([one for one in asked if one.startswith("SELECT")]))
        found = next(view for view in listed if view.id == renewed.id)
        assert (found.period_used_tokens, found.period_reserved_tokens) == (5, 2)
        assert found == key_store.find(renewed.id)
        assert found.prefix == renewed.prefix
        assert sum(view.period_used_tokens for view in listed) == 5 * len(counts)
    assert counts[0] == counts[1]
