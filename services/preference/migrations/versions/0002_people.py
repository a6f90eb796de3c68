"""People and their sessions; several annotators for a task; gold items; rankings; answers taken back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.String(200)
_OPEN = {
    "tasks_open": ["answered", "gold", "priority", "order_key"],
    "tasks_open_of_campaign": ["campaign", "answered", "gold", "priority", "order_key"],
}


def upgrade() -> None:
    """Add them; what was answered until now has one answer."""
    op.add_column("items", _number("annotators"))
    op.add_column("items", sa.Column("gold_order", sa.JSON, nullable=False, server_default="[]"))
    op.add_column("tasks", _number("priority"))
    op.add_column("tasks", _number("wanted", "1"))
    op.add_column("tasks", _number("answers"))
    op.add_column("tasks", _flag("gold"))
    op.execute("UPDATE tasks SET answers = 1 WHERE answered")
    for name, columns in _OPEN.items():
        op.drop_index(name, "tasks")
        op.create_index(name, "tasks", columns)
    _widen_comparisons()
    _create_withdrawn()
    _create_people()
    op.execute("UPDATE schema SET version = 2")


def _widen_comparisons() -> None:
    # SQLite cannot drop a constraint: there the table is made anew. It had no name for it, PostgreSQL gave it one.
    sqlite = op.get_bind().dialect.name == "sqlite"
    names = {"uq": "%(table_name)s_%(column_0_name)s_key"}
    with op.batch_alter_table(
        "comparisons", recreate="always" if sqlite else "never", naming_convention=names
    ) as table:
        table.drop_constraint("comparisons_task_id_key", type_="unique")
        table.create_unique_constraint("comparisons_once", ["task_id", "annotator"])
        table.add_column(sa.Column("ranking_id", _ID, nullable=False, server_default=""))
        table.add_column(sa.Column("seconds", sa.Float))
        table.add_column(sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"))
        table.add_column(_flag("gold"))


def _create_withdrawn() -> None:
    op.create_table(
        "withdrawn",
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("task_id", _ID, sa.ForeignKey("tasks.task_id"), nullable=False),
        sa.Column("annotator", _ID, nullable=False),
        sa.Column("choice", sa.String(8), nullable=False),
        sa.Column("preferred", _ID, nullable=False),
        sa.Column("recorded_at", sa.Float, nullable=False),
        sa.Column("withdrawn_at", sa.Float, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_index("withdrawn_of_task", "withdrawn", ["task_id", "annotator"])


def _create_people() -> None:
    op.create_table(
        "people",
        sa.Column("name", _ID, primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("campaign", _ID, nullable=False),
        sa.Column("link_hash", sa.String(80), unique=True),
        sa.Column("link_expires", sa.Float),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "sessions",
        sa.Column("token_hash", sa.String(80), primary_key=True),
        sa.Column("name", _ID, sa.ForeignKey("people.name"), nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
    )
    op.create_index("ix_sessions_name", "sessions", ["name"])


def _number(name: str, default: str = "0") -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default=default)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false())


def downgrade() -> None:
    """A task with two answers has no place in the older tables."""
    raise NotImplementedError("schema 2 cannot be taken back: restore a copy of the database")
