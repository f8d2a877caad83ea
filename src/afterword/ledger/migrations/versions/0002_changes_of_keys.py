"""Changes of keys one by one; secrets found by their key, and keys in the order of their making."""

import os

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Begin the list of changes at the version that the keys are at."""
    changes = op.create_table(
        "key_changes",
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("mark", sa.Text, nullable=False),
    )
    state = sa.table("state", sa.column("keys_version", sa.BigInteger))
    # Servers know a ledger by its mark, so each has its own from the start.
    first = sa.select(state.c.keys_version, sa.literal(""), sa.literal(os.urandom(8).hex()))
    op.execute(changes.insert().from_select(["version", "key_id", "mark"], first))
    op.create_index("secrets_by_key", "secrets", ["key_id"])
    op.create_index("keys_by_time", "keys", ["created_at", "id"])
