"""Alembic's entry: runs the steps on the connection that ``database.upgrade`` hands over."""

from alembic import context

from afterword.ledger.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
