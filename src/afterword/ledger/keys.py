"""Keys in the database: made, listed, rotated, revoked. It keeps only their hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from afterword.core.account import PERIODS, KeyTerms, KeyView, NewKey
from afterword.core.errors import InvalidRequest
from afterword.core.faults import without_keys
from afterword.core.limits import MOST_KEY_LIMIT, MOST_KEY_MODELS, MOST_KEY_NAME_CHARACTERS
from afterword.core.moments import END_OF_TIME_S
from afterword.ledger.database import reading
from afterword.ledger.keyring import HeldKey
from afterword.ledger.periods import period_of
from afterword.ledger.secret import digest_of, make_secret, prefix_of
from afterword.ledger.tables import key_changes, keys, secrets, spending, state

_ID_BYTES = 6
_MARK_BYTES = 8
_PAGE_KEYS = 1000
MOST_CHANGES = 10_000
"""As many changes of keys are listed. A server that missed more reads all keys."""


class KeyChange(msgspec.Struct, frozen=True):
    """A change of a key. ``mark`` is random; None: it was made without being listed."""

    version: int
    mark: str | None


class KeyStore:
    """The keys of a database. ``clock`` gives Unix seconds, ``entropy(n)`` n random bytes."""

    def __init__(
        self, engine: sa.Engine, *, clock: Callable[[], float], entropy: Callable[[int], bytes]
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._entropy = entropy

    def create(self, terms: KeyTerms) -> NewKey:
        """Make a key; its secret is shown once.

        Raises ``InvalidRequest`` for a taken name, and for a key that has expired already.
        """
        check_terms(terms)
        if terms.expires_at is not None and terms.expires_at <= self._clock():
            raise InvalidRequest("'expires' has to lie in the future", param="expires")
        key_id = f"key-{self._entropy(_ID_BYTES).hex()}"
        models = None if terms.models is None else msgspec.json.encode(terms.models).decode()
        row = {**msgspec.structs.asdict(terms), "id": key_id, "models": models}
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(keys).values(**row, created_at=self._clock()))
                secret = self._add_secret(connection, key_id)
                self._note_change(connection, key_id)
        except IntegrityError as error:
            advice = (
                "choose another name, or rotate that key"
                if self.find(terms.name).revoked_at is None
                else "it is revoked, so choose another name"
            )
            raise InvalidRequest(
                f"there is a key {terms.name!r} already: {advice}", param="name"
            ) from error
        return NewKey(secret, self.find(key_id))

    def all(self) -> Iterator[KeyView]:
        """Returns all keys, oldest first. They are read page by page."""
        last: KeyView | None = None
        while page := self.page(last):
            yield from page
            last = page[-1]

    def page(self, after: KeyView | None) -> list[KeyView]:
        """Returns the thousand keys behind one, oldest first; None begins with the first."""
        behind: sa.ColumnElement[bool] = sa.true()
        if after is not None:
            at = sa.tuple_(keys.c.created_at, keys.c.id)
            behind = at > sa.tuple_(after.created_at, after.id)
        with reading(self._engine) as connection:
            return self._views(connection, behind)

    def find(self, key: str) -> KeyView:
        """Returns a key by id or name. Raises ``InvalidRequest`` if there is none."""
        found: list[KeyView] = []
        # No other text is a key's name, and not every database takes it.
        if _is_name(key):
            with reading(self._engine) as connection:
                found = self._views(connection, (keys.c.id == key) | (keys.c.name == key))
        if not found:
            shown = without_keys(key)[:MOST_KEY_NAME_CHARACTERS]
            raise InvalidRequest(f"there is no key {shown!a}", param="key")
        return found[0]

    def rotate(self, key: str, overlap_s: float) -> NewKey:
        """Make a new secret. The old ones end after ``overlap_s`` seconds.

        Raises ``InvalidRequest`` if the key is revoked or has expired: its secret would not do.
        """
        view = self.find(key)
        now_s = self._clock()
        if view.revoked_at is not None:
            raise InvalidRequest(
                f"key {view.terms.name!r} is revoked: make another one", param="key"
            )
        if view.terms.expires_at is not None and view.terms.expires_at <= now_s:
            raise InvalidRequest(
                f"key {view.terms.name!r} has expired: make another one", param="key"
            )
        end = now_s + overlap_s
        ended = secrets.c.expires_at <= now_s
        runs_on = secrets.c.expires_at.is_(None) | (secrets.c.expires_at > end)
        with self._engine.begin() as connection:
            # They let nobody in, and servers would read them for ever.
            connection.execute(sa.delete(secrets).where(secrets.c.key_id == view.id, ended))
            connection.execute(
                sa.update(secrets)
                .where(secrets.c.key_id == view.id, runs_on)
                .values(expires_at=end)
            )
            secret = self._add_secret(connection, view.id)
            self._note_change(connection, view.id)
        return NewKey(secret, self.find(view.id))

    def revoke(self, key: str) -> KeyView:
        """Revoke a key. Idempotent."""
        view = self.find(key)
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(keys)
                .where(keys.c.id == view.id, keys.c.revoked_at.is_(None))
                .values(revoked_at=self._clock())
            )
            self._note_change(connection, view.id)
        return self.find(view.id)

    def _add_secret(self, connection: sa.Connection, key_id: str) -> str:
        secret = make_secret(self._entropy)
        connection.execute(
            sa.insert(secrets).values(
                digest=digest_of(secret).hex(),
                key_id=key_id,
                prefix=prefix_of(secret),
                created_at=self._clock(),
            )
        )
        return secret

    def _note_change(self, connection: sa.Connection, key_id: str) -> None:
        """List a change, as the last statements of its transaction.

        The row of ``state`` stays locked until the transaction ends. So versions are in the order
        of commits, and whoever sees one sees all below it.
        """
        version = connection.scalars(
            sa.update(state)
            .values(keys_version=state.c.keys_version + 1)
            .returning(state.c.keys_version)
        ).one()
        row = {"version": version, "key_id": key_id, "mark": self._entropy(_MARK_BYTES).hex()}
        connection.execute(sa.insert(key_changes).values(row))
        connection.execute(
            sa.delete(key_changes).where(key_changes.c.version <= version - MOST_CHANGES)
        )

    def _views(self, connection: sa.Connection, which: sa.ColumnElement[bool]) -> list[KeyView]:
        """Returns keys, oldest first, a page at most. It asks three questions, not three a key."""
        now_s = self._clock()
        periods = {per: period_of(now_s, per) for per in PERIODS}
        rows = (
            connection.execute(
                sa.select(keys)
                .where(which)
                .order_by(keys.c.created_at, keys.c.id)
                .limit(_PAGE_KEYS)
            )
            .mappings()
            .all()
        )
        ids = [row["id"] for row in rows]
        if not ids:
            return []
        # The newest secret comes last, and its prefix stays.
        made = connection.execute(
            sa.select(secrets.c.key_id, secrets.c.prefix)
            .where(secrets.c.key_id.in_(ids))
            .order_by(secrets.c.created_at, secrets.c.digest.desc())
        )
        prefixes = {row.key_id: row.prefix for row in made}
        now = connection.execute(
            sa.select(spending).where(
                spending.c.key_id.in_(ids), spending.c.period.in_(periods.values())
            )
        )
        spent = {(row.key_id, row.period): (row.used, row.reserved) for row in now}
        views = []
        for row in rows:
            used, reserved = spent.get((row["id"], periods[row["budget_per"]]), (0, 0))
            views.append(
                KeyView(
                    id=row["id"],
                    prefix=prefixes[row["id"]],
                    terms=_terms(row),
                    created_at=row["created_at"],
                    revoked_at=row["revoked_at"],
                    period_used_tokens=used,
                    period_reserved_tokens=reserved,
                )
            )
        return views


def check_terms(terms: KeyTerms) -> None:
    """Raises ``InvalidRequest`` for terms without a meaning."""
    if not _is_name(terms.name):
        raise InvalidRequest(
            f"a key's name has 1 to {MOST_KEY_NAME_CHARACTERS} printable characters", param="name"
        )
    if terms.models is not None and not all(terms.models or ("",)):
        raise InvalidRequest("'models' has to name one model at least", param="models")
    if len(terms.models or ()) > MOST_KEY_MODELS or not all(map(_is_name, terms.models or ())):
        raise InvalidRequest(
            f"'models' takes up to {MOST_KEY_MODELS} names of up to {MOST_KEY_NAME_CHARACTERS} "
            "printable characters",
            param="models",
        )
    expires_at = terms.expires_at
    if expires_at is not None and not 0 <= expires_at <= END_OF_TIME_S:
        raise InvalidRequest("'expires' ends after the year 9999", param="expires")
    for field in ("rpm", "tpm", "concurrent", "budget_tokens"):
        value = getattr(terms, field)
        if value is not None and not 1 <= value <= MOST_KEY_LIMIT:
            raise InvalidRequest(
                f"'{field}' is {str(value)[:40]}: expected 1 or more, below {MOST_KEY_LIMIT + 1}",
                param=field,
            )


def _is_name(text: str) -> bool:
    return bool(text) and len(text) <= MOST_KEY_NAME_CHARACTERS and text.isprintable()


def last_change(connection: sa.Connection) -> KeyChange:
    """Returns the last change of a key."""
    row = connection.execute(
        sa.select(state.c.keys_version, key_changes.c.mark).outerjoin(
            key_changes, key_changes.c.version == state.c.keys_version
        )
    ).one()
    return KeyChange(row.keys_version, row.mark)


def changed_keys(
    connection: sa.Connection, since: KeyChange, until: KeyChange, *, most: int
) -> tuple[list[str], KeyChange] | None:
    """Returns the keys of the ``most`` first changes behind ``since``, and the last of these.

    None if the list does not tell: it no longer goes back so far, ``since`` is a change of another
    ledger, or somebody changed keys without it.
    """
    rows = connection.execute(
        sa.select(key_changes)
        .where(key_changes.c.version.between(since.version, until.version))
        .order_by(key_changes.c.version)
        .limit(most + 1)
    ).all()
    expected = range(since.version, min(until.version, since.version + most) + 1)
    if not rows or rows[0].mark != since.mark or [row.version for row in rows] != list(expected):
        return None
    return [row.key_id for row in rows[1:]], KeyChange(rows[-1].version, rows[-1].mark)


def keys_behind(
    connection: sa.Connection, after: str, *, most: int, reading: int
) -> dict[str, HeldKey | None]:
    """Returns the ``most`` first keys behind an id, in order; None for those that are revoked."""
    which = sa.select(keys).where(keys.c.id > after).order_by(keys.c.id).limit(most)
    return _held(connection, which, reading)


def keys_of(
    connection: sa.Connection, ids: Sequence[str], *, reading: int
) -> dict[str, HeldKey | None]:
    """Returns the keys of these ids; None for those that are revoked."""
    return _held(connection, sa.select(keys).where(keys.c.id.in_(ids)), reading)


def _held(
    connection: sa.Connection, which: sa.Select[Any], reading: int
) -> dict[str, HeldKey | None]:
    rows = connection.execute(which).mappings().all()
    held: dict[str, HeldKey | None] = dict.fromkeys(row["id"] for row in rows)
    terms = {row["id"]: _terms(row) for row in rows if row["revoked_at"] is None}
    if not terms:
        return held
    # Not a join: a database that counted its rows long ago may read all secrets for it.
    made = connection.execute(
        sa.select(secrets.c.key_id, secrets.c.digest, secrets.c.expires_at).where(
            secrets.c.key_id.in_(list(terms))
        )
    ).all()
    for key_id, digest, ends_at in made:
        of_key = terms[key_id]
        ends = [end for end in (ends_at, of_key.expires_at) if end is not None]
        held[key_id] = HeldKey(
            bytes.fromhex(digest), key_id, of_key, min(ends, default=None), reading, held[key_id]
        )
    return held


def any_key(connection: sa.Connection) -> bool:
    """Whether a key was once made; from then on every request needs one."""
    return connection.scalars(sa.select(sa.exists().select_from(keys))).one()


def _terms(row: sa.RowMapping) -> KeyTerms:
    models = row["models"]
    return KeyTerms(
        name=row["name"],
        models=None if models is None else msgspec.json.decode(models, type=tuple[str, ...]),
        rpm=row["rpm"],
        tpm=row["tpm"],
        concurrent=row["concurrent"],
        budget_tokens=row["budget_tokens"],
        budget_per=row["budget_per"],
        expires_at=row["expires_at"],
        admin=bool(row["admin"]),
    )
