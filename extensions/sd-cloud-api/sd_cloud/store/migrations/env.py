"""What Alembic runs: the migrations, on the connection that the store hands over.

By hand (``alembic -c`` with ``sqlalchemy.url``) it opens its own, for writing a new migration.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine

from sd_cloud.store.schema import metadata


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    with create_engine(context.config.get_main_option("sqlalchemy.url") or "sqlite://").begin() as own:
        migrate(own)
