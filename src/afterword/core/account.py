"""Who asks, what they may spend, and what they spent: the values of the ledger.

Token counts are those of ``usage`` on the wire (A5); times are Unix seconds in UTC.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Period: TypeAlias = Literal["day", "month"]
UsageStatus: TypeAlias = Literal["answered", "failed", "client_gone", "cancelled", "lost"]
UsageBy: TypeAlias = Literal["key", "model", "user", "day"]


class Principal(msgspec.Struct, frozen=True):
    """Who a key belongs to; ``key_id`` None is whoever may ask without one.

    ``models`` None allows every model, otherwise those of these names and aliases.
    """

    key_id: str | None
    name: str
    models: frozenset[str] | None = None
    admin: bool = False


NOBODY = Principal(None, "-")
"""Whoever asks where no key is needed."""
STRANGER = Principal(None, "-", models=frozenset())
"""Whoever asks without the key that is needed: knows of no model."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request that wants to be admitted. ``most_tokens`` is the worst case, prompts included."""

    id: str
    model: str
    user: str | None
    stream: bool
    most_tokens: int


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What an admitted request came to."""

    status: UsageStatus
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_ms: float | None
    duration_ms: float


class Rate(msgspec.Struct, frozen=True):
    """A limit at the moment of admission; ``reset_s`` is the time until all of it is free again."""

    limit: int
    remaining: int
    reset_s: float


class Rates(msgspec.Struct, frozen=True):
    """The limits per minute that a key has."""

    requests: Rate | None = None
    tokens: Rate | None = None


class KeyTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a key is made for; None is "without limit"."""

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
    """A key as operators see it: everything but the key. ``prefix`` tells secrets apart."""

    id: str
    prefix: str
    terms: KeyTerms
    created_at: float
    revoked_at: float | None
    period_used_tokens: int = 0
    period_reserved_tokens: int = 0


class NewKey(msgspec.Struct, frozen=True):
    """A key at the one moment at which it is known; only its hash is kept."""

    secret: str
    view: KeyView


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One admitted request, at its end; ``id`` is its answer's."""

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
    """Which records are meant: those that began in ``[since, until)``, of one key or of all."""

    since: float | None = None
    until: float | None = None
    key_id: str | None = None


class UsageSum(msgspec.Struct, frozen=True, kw_only=True):
    """The records of one key, model, user or day (UTC), added up."""

    group: str
    requests: int
    answered: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int
