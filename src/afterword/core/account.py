"""The values of the ledger: who asks, what they may use, what they used.

Token counts are those of ``usage`` on the wire (A5); times are Unix seconds in UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import msgspec

Period: TypeAlias = Literal["day", "month"]
PERIODS: Sequence[Period] = get_args(Period)
UsageStatus: TypeAlias = Literal["answered", "failed", "client_gone", "cancelled", "lost"]
UsageBy: TypeAlias = Literal["key", "model", "user", "day"]


class Principal(msgspec.Struct, frozen=True):
    """The owner of a key; ``key_id`` None is a client without a key.

    ``models`` None allows every model, otherwise these names and aliases.
    """

    key_id: str | None
    name: str
    models: frozenset[str] | None = None
    admin: bool = False


NOBODY = Principal(None, "-")
"""A client without a key, where none is needed."""
STRANGER = Principal(None, "-", models=frozenset())
"""A client without the key that is needed. It sees no model."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request to be admitted. ``most_tokens`` is its worst case, prompts included.

    ``candidates`` are the sequences that it makes, each of which may take its max_tokens.
    ``open_ended``: it gave no max_tokens.
    """

    id: str
    model: str
    user: str | None
    stream: bool
    most_tokens: int
    prompt_tokens: int = 0
    candidates: int = 1
    open_ended: bool = False


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """How an admitted request ended, and what it used."""

    status: UsageStatus
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_ms: float | None
    duration_ms: float


class Rate(msgspec.Struct, frozen=True):
    """A limit at admission. After ``reset_s`` seconds all of it is free again."""

    limit: int
    remaining: int
    reset_s: float


class Rates(msgspec.Struct, frozen=True):
    """A key's limits per minute; None is "without limit"."""

    requests: Rate | None = None
    tokens: Rate | None = None


class KeyTerms(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a key allows; None is "without limit"."""

    name: str
    models: tuple[str, ...] | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrent: int | None = None
    budget_tokens: int | None = None
    budget_per: Period = "month"
    expires_at: float | None = None
    admin: bool = False


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key as operators see it, without its secret. ``prefix`` is how the secret begins."""

    id: str
    prefix: str
    terms: KeyTerms
    created_at: float
    revoked_at: float | None
    period_used_tokens: int = 0
    period_reserved_tokens: int = 0


class NewKey(msgspec.Struct, frozen=True):
    """A new key with its secret, which is shown once; the ledger keeps its hash."""

    secret: str
    view: KeyView


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One admitted request at its end; ``id`` is the answer's id."""

    id: str
    key_id: str | None
    model: str
    user: str | None
    stream: bool
    status: UsageStatus
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    started_at: float
    first_token_ms: float | None
    duration_ms: float


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Selects records: of requests that began in ``[since, until)``, of one key or of all."""

    since: float | None = None
    until: float | None = None
    key_id: str | None = None


class UsageSum(msgspec.Struct, frozen=True, kw_only=True):
    """The sum of the records of one key, model, user or day (UTC)."""

    group: str
    requests: int
    answered: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int
