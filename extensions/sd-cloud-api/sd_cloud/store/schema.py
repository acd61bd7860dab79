"""The tables: tasks and their owners, the EAS queue, users and tokens, models, usage, webhooks.

Times are seconds since the epoch. A column is added here and in a new file of ``migrations``; a
test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _number() -> Column[int]:
    """A running number. SQLite only counts up a column whose type is INTEGER."""
    return Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True)


tasks = Table(
    "tasks",
    metadata,
    _number(),
    Column("id", String(64), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("dialect", String(32), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("ready", Boolean, nullable=False, default=False),
    Column("priority", BigInteger, nullable=False),
    Column("order_key", String(255)),
    Column("checkpoint", Text),
    Column("job", Text, nullable=False),
    Column("kept", Boolean, nullable=False),  # is there somebody to fetch the result after a restart?
    Column("attempts", Integer, nullable=False, default=0),
    Column("preparations", Integer, nullable=False, default=0),
    Column("overtaken", Integer, nullable=False, default=0),
    Column("process", String(32)),  # who runs it, or who alone may
    Column("submitted", Double, nullable=False),
    Column("scheduled", Double),
    Column("ended", Double),
    Column("expires", Double),
    Column("cleaned_after", Double),  # its pictures could not be removed: not before then
    Column("outcome", Text),
    Column("reply_body", LargeBinary),
    Column("error", Text),
    Column("progress", Text),  # while it runs
    Column("preview", LargeBinary),
    Column("cancel_asked", Boolean, nullable=False, default=False, server_default=false()),
    Column("idempotency_key", String(255)),
    Column("fingerprint", String(64)),
    Column("pictures", Integer, nullable=False, default=0, server_default="0"),  # asked for
    Column("message", BigInteger),  # the number of the queued message that asked for it
    UniqueConstraint("id"),
    Index("ix_tasks_waiting", "state", "priority", "number"),
    Index("ix_tasks_owner", "owner", "state"),
    Index("ix_tasks_expires", "expires"),
    # Two processes that claim at the same moment cannot both start a job of one order key.
    Index(
        "uq_tasks_running_order_key",
        "order_key",
        unique=True,
        sqlite_where=text("state = 'running' AND order_key IS NOT NULL"),
        postgresql_where=text("state = 'running' AND order_key IS NOT NULL"),
    ),
    Index(
        "uq_tasks_idempotency_key",
        "owner",
        "idempotency_key",
        unique=True,
        sqlite_where=text("idempotency_key IS NOT NULL"),
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)

owners = Table(
    "owners",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("served", BigInteger, nullable=False),  # nanoseconds since the epoch
)

messages = Table(
    "messages",
    metadata,
    _number(),
    Column("queue", String(255), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("task_id", String(64)),
    Column("priority", BigInteger, nullable=False),
    Column("tags", Text, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("message", Text, nullable=False, default=""),
    Column("submitted", Double, nullable=False),
    Index("ix_messages_queue", "queue", "priority", "number"),
    Index("ix_messages_request_id", "request_id"),
    Index("ix_messages_task_id", "task_id"),
    sqlite_autoincrement=True,
)

deliveries = Table(
    "deliveries",
    metadata,
    Column(
        "message",
        BigInteger().with_variant(Integer, "sqlite"),
        ForeignKey("messages.number", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("grp", String(255), primary_key=True),
    Column("consumer", String(255)),
    Column("connection", String(64)),
    Column("process", String(32)),
    Column("committed", Boolean, nullable=False, default=False),
    Index("ix_deliveries_connection", "connection"),
)

users = Table(
    "users",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("password", Text),  # argon2; none: only tokens
    Column("created", Double, nullable=False),
    Column("disabled", Boolean, nullable=False, default=False),
    Column("waiting_limit", Integer),
    Column("daily_pictures", Integer),
)

tokens = Table(
    "tokens",
    metadata,
    Column("digest", String(64), primary_key=True),  # SHA-256 of the token
    Column("owner", String(255), ForeignKey("users.name", ondelete="CASCADE"), nullable=False),
    Column("label", String(255), nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Index("ix_tokens_owner", "owner"),
)

models = Table(
    "models",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("type", String(32), nullable=False),
    Column("oss_path", Text, nullable=False),
    Column("filename", Text),
    Column("etag", String(128), nullable=False),
    Column("status", String(16), nullable=False),
    Column("message", Text, nullable=False, default=""),
    Column("registered", Double, nullable=False),
    Column("modified", Double, nullable=False),
)

functions = Table(
    "functions",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("model", Text, nullable=False),
    Column("resources", Text, nullable=False),
    Column("deleted", Boolean, nullable=False, default=False),
)

usage = Table(
    "usage",
    metadata,
    _number(),
    Column("task_id", String(64), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("dialect", String(32), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("checkpoint", Text),
    Column("state", String(16), nullable=False),
    Column("pictures", Integer, nullable=False),
    Column("megapixel_steps", Double, nullable=False),
    Column("engine_seconds", Double, nullable=False),
    Column("ended", Double, nullable=False),
    Index("ix_usage_owner", "owner", "ended"),
    sqlite_autoincrement=True,
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("task_id", String(64), primary_key=True),
    Column("url", Text, nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("due", Double, nullable=False),
    Column("state", String(16), nullable=False, server_default="waiting"),  # then delivered or failed
    Column("error", Text),
    Index("ix_webhooks_due", "state", "due"),
)

#: Tasks that expired: their owner is told that they were, everybody else that they never were.
forgotten = Table(
    "forgotten",
    metadata,
    Column("task_id", String(64), primary_key=True),
    Column("owner", String(255), nullable=False),
    Column("until", Double, nullable=False),
)

#: Who watches a queue of messages at this moment.
consumers = Table(
    "consumers",
    metadata,
    Column("connection", String(64), primary_key=True),
    Column("queue", String(255), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("grp", String(255), nullable=False),
    Column("uid", String(255), nullable=False),
    Column("window", Integer, nullable=False),
    Column("auto_commit", Boolean, nullable=False),
    Column("process", String(32), nullable=False),
    Column("since", Double, nullable=False),
    Index("ix_consumers_queue", "queue", "owner"),
)

#: Queues of messages that take no more, until they are truncated.
ended_queues = Table(
    "ended_queues",
    metadata,
    Column("queue", String(255), primary_key=True),
    Column("owner", String(255), primary_key=True),
    Column("forced", Boolean, nullable=False),
)
