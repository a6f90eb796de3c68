"""Items, candidates, tasks, annotators, comparisons: the tables as they were before there were migrations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.String(200)


def upgrade() -> None:
    """Make them."""
    # Programs from before the migrations read this row, and refuse a database that is newer than they are.
    schema = op.create_table(
        "schema", sa.Column("version", sa.Integer, primary_key=True, autoincrement=False)
    )
    op.bulk_insert(schema, [{"version": 1}])
    op.create_table(
        "items",
        sa.Column("item_id", _ID, primary_key=True),
        sa.Column("campaign", _ID, nullable=False),
        sa.Column("prompt_id", _ID, nullable=False),
        sa.Column("prompt", sa.JSON, nullable=False),
    )
    op.create_index("ix_items_campaign", "items", ["campaign"])
    op.create_table(
        "candidates",
        sa.Column("item_id", _ID, sa.ForeignKey("items.item_id"), primary_key=True),
        sa.Column("candidate_id", _ID, primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("source", _ID, nullable=False),
        sa.Column("version_epoch", sa.BigInteger),
        sa.Column("version_step", sa.BigInteger),
        sa.Column("version_digest", _ID),
    )
    op.create_table(
        "tasks",
        sa.Column("task_id", _ID, primary_key=True),
        sa.Column("item_id", _ID, sa.ForeignKey("items.item_id"), nullable=False),
        sa.Column("campaign", _ID, nullable=False),
        sa.Column("first_candidate_id", _ID, nullable=False),
        sa.Column("second_candidate_id", _ID, nullable=False),
        sa.Column("order_key", sa.BigInteger, nullable=False),
        sa.Column("answered", sa.Boolean, nullable=False),
        sa.Column("lease_holder", _ID, nullable=False),
        sa.Column("lease_until", sa.Float, nullable=False),
    )
    op.create_index("ix_tasks_item_id", "tasks", ["item_id"])
    op.create_index("tasks_open", "tasks", ["answered", "order_key"])
    op.create_index("tasks_open_of_campaign", "tasks", ["campaign", "answered", "order_key"])
    op.create_index("tasks_held", "tasks", ["lease_holder"])
    op.create_table(
        "annotators",
        sa.Column("name", _ID, primary_key=True),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("rule_digest", _ID, nullable=False),
        sa.Column("first_seen", sa.Float, nullable=False),
    )
    _create_comparisons()


def _create_comparisons() -> None:
    op.create_table(
        "comparisons",
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("task_id", _ID, sa.ForeignKey("tasks.task_id"), nullable=False, unique=True),
        sa.Column("item_id", _ID, sa.ForeignKey("items.item_id"), nullable=False),
        sa.Column("campaign", _ID, nullable=False),
        sa.Column("annotator", _ID, sa.ForeignKey("annotators.name"), nullable=False),
        sa.Column("first_candidate_id", _ID, nullable=False),
        sa.Column("second_candidate_id", _ID, nullable=False),
        sa.Column("choice", sa.String(8), nullable=False),
        sa.Column("confidence", sa.Float),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("recorded_at", sa.Float, nullable=False),
        *(
            sa.ForeignKeyConstraint(["item_id", side], ["candidates.item_id", "candidates.candidate_id"])
            for side in ("first_candidate_id", "second_candidate_id")
        ),
    )
    op.create_index("ix_comparisons_item_id", "comparisons", ["item_id"])
    op.create_index("ix_comparisons_annotator", "comparisons", ["annotator"])
    op.create_index("comparisons_by_time", "comparisons", ["recorded_at", "sequence"])
    op.create_index("comparisons_of_campaign", "comparisons", ["campaign", "recorded_at", "sequence"])


def downgrade() -> None:
    """Nothing is older."""
    raise NotImplementedError("there is no older schema")
