"""Who watches a queue of messages, and which queues have ended"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "consumers",
        sa.Column("connection", sa.String(length=64), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("grp", sa.String(length=255), nullable=False),
        sa.Column("uid", sa.String(length=255), nullable=False),
        sa.Column("window", sa.Integer(), nullable=False),
        sa.Column("auto_commit", sa.Boolean(), nullable=False),
        sa.Column("process", sa.String(length=32), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("connection", name=op.f("pk_consumers")),
    )
    op.create_index("ix_consumers_queue", "consumers", ["queue", "owner"], unique=False)
    op.create_table(
        "ended_queues",
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("queue", "owner", name=op.f("pk_ended_queues")),
    )


def downgrade() -> None:
    op.drop_table("ended_queues")
    op.drop_table("consumers")
