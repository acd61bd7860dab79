"""Alembic migrations of the store, applied when a service opens its database."""
