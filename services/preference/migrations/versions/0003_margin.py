"""How much better the preferred answer is, where somebody said so."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of what was said until now nobody knows."""
    op.add_column("comparisons", sa.Column("margin", sa.Float))
    op.execute("UPDATE schema SET version = 3")


def downgrade() -> None:
    """Margins would be lost."""
    raise NotImplementedError("schema 3 cannot be taken back: restore a copy of the database")
