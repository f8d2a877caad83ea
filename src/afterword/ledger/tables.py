"""The tables of the ledger. Times are Unix seconds in UTC; tokens are as on the wire (A5)."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)

metadata = MetaData()

state = Table(
    "state",
    metadata,
    Column("id", Integer, primary_key=True),  # always 1
    Column("keys_version", BigInteger, nullable=False),  # grows by one with every change of a key
)

key_changes = Table(
    "key_changes",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),  # that the change made
    Column("key_id", Text, nullable=False),
    Column("mark", Text, nullable=False),  # random: another ledger's version has another one
)

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("models", Text),  # JSON array of names; null allows all
    Column("rpm", BigInteger),
    Column("tpm", BigInteger),
    Column("concurrent", BigInteger),
    Column("budget_tokens", BigInteger),
    Column("budget_per", Text, nullable=False),
    Column("admin", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Index("keys_by_time", "created_at", "id"),
)

secrets = Table(
    "secrets",
    metadata,
    Column("digest", Text, primary_key=True),  # SHA-256 of the key, hexadecimal
    Column("key_id", Text, ForeignKey("keys.id"), nullable=False),
    Column("prefix", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Index("secrets_by_key", "key_id"),
)

usage = Table(
    "usage",
    metadata,
    Column("id", Text, primary_key=True),  # of the answer
    Column("key_id", Text),  # null if no key was needed
    Column("model", Text, nullable=False),
    Column("user", Text),
    Column("stream", Boolean, nullable=False),
    Column("status", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("first_token_ms", Double),
    Column("duration_ms", Double, nullable=False),
    Index("usage_by_time", "started_at"),
    Index("usage_by_key", "key_id", "started_at"),
)

spending = Table(
    "spending",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("period", Text, primary_key=True),  # 2026-11-25 or 2026-11
    Column("used", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
)

processes = Table(
    "processes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("beats", BigInteger, nullable=False),  # grows while the process lives
)

reservations = Table(
    "reservations",
    metadata,
    Column("id", Text, primary_key=True),  # of the answer
    Column("process_id", Text, nullable=False, index=True),
    Column("key_id", Text, nullable=False),
    Column("period", Text, nullable=False),
    Column("tokens", BigInteger, nullable=False),
)
