"""Which queued message asked for a task"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("message", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("tasks", "message")
