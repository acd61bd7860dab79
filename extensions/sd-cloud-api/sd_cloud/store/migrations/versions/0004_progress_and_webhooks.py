"""How far a task is and whether it is to stop, for other processes; what became of a call back"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("progress", sa.Text(), nullable=True))
    op.add_column("tasks", sa.Column("preview", sa.LargeBinary(), nullable=True))
    op.add_column("tasks", sa.Column("cancel_asked", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column(
        "webhooks", sa.Column("state", sa.String(length=16), nullable=False, server_default="waiting")
    )
    op.add_column("webhooks", sa.Column("error", sa.Text(), nullable=True))
    op.create_index("ix_webhooks_due", "webhooks", ["state", "due"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_webhooks_due", table_name="webhooks")
    op.drop_column("webhooks", "error")
    op.drop_column("webhooks", "state")
    op.drop_column("tasks", "cancel_asked")
    op.drop_column("tasks", "preview")
    op.drop_column("tasks", "progress")
