"""What Alembic asks for: the connection that migrating.py opened, inside its transaction."""

from __future__ import annotations

from alembic import context

from services.preference.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
