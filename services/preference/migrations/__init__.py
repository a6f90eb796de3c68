"""The tables' history: what Alembic runs to bring a database up to date."""
