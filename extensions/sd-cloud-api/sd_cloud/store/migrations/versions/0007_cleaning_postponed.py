"""When an expired task whose pictures could not be removed is looked at again"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("cleaned_after", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("tasks", "cleaned_after")
