"""Rows of messages: which are meant, in which order, how one is added or taken away."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, delete, insert, select

from sd_cloud.store.queues import Message, Queue
from sd_cloud.store.schema import ended_queues, messages

#: Messages that are looked at in one go to find those with the tags that were asked for.
LOOKED_AT = 500
# Built once: for a statement this small, building it costs as much as running it.
_ADD = insert(messages).returning(messages.c.number, sort_by_parameter_order=True)
_REMOVE = delete(messages).where(messages.c.number.in_(bindparam("indexes", expanding=True)))
_ENDED = select(ended_queues).where(
    ended_queues.c.queue == bindparam("queue"), ended_queues.c.owner == bindparam("owner")
)


def topic(queue: Queue) -> str:
    """What is announced when something about the queue has changed."""
    return f"queue:{queue.name}:{queue.owner}".replace(" ", "_")


def of(queue: Queue) -> tuple[ColumnElement[bool], ...]:
    return messages.c.queue == queue.name, messages.c.owner == queue.owner


#: The same for a statement that is built once and run with :func:`named`.
OF_NAMED = (messages.c.queue == bindparam("queue"), messages.c.owner == bindparam("owner"))


def named(queue: Queue) -> dict[str, Any]:
    return {"queue": queue.name, "owner": queue.owner}


def ended(connection: Connection, queue: Queue) -> Row[Any] | None:
    """The mark of a queue that takes no more."""
    return connection.execute(_ENDED, named(queue)).one_or_none()


def in_order(wanted: Select[Any]) -> Select[Any]:
    return wanted.order_by(messages.c.priority.desc(), messages.c.number)


def with_tags(
    connection: Connection,
    wanted: Select[Any],
    tags: Mapping[str, str],
    length: int | None,
    values: Mapping[str, Any] | None = None,
) -> list[Message]:
    """The first messages that have all of these tags. ``values``: of the statement's parameters."""
    if not tags:
        every = connection.execute(wanted.limit(length) if length is not None else wanted, values)
        return [message_of(row) for row in every]
    if "requestId" in tags:
        wanted = wanted.where(messages.c.request_id == tags["requestId"])
    found: list[Message] = []
    offset = 0
    while length is None or len(found) < length:
        rows = connection.execute(wanted.limit(LOOKED_AT).offset(offset), values).all()
        found += [one for one in map(message_of, rows) if tags.items() <= one.tags.items()]
        if len(rows) < LOOKED_AT:
            break
        offset += LOOKED_AT
    return found if length is None else found[:length]


def message_of(row: Row[Any]) -> Message:
    return Message(row.number, json.loads(row.tags), bytes(row.data), row.message, row.task_id, row.priority)


def new(
    queue: Queue,
    data: bytes,
    tags: Mapping[str, str],
    *,
    request_id: str,
    priority: int,
    task_id: str | None = None,
    message: str = "",
) -> dict[str, Any]:
    """The row of a message that is to be added."""
    return {
        "queue": queue.name,
        "owner": queue.owner,
        "request_id": request_id,
        "task_id": task_id,
        "priority": priority,
        "tags": json.dumps(dict(tags)),
        "data": data,
        "message": message,
        "submitted": time.time(),
    }


def add(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Their indexes, in the same order."""
    return list(connection.execute(_ADD, list(rows)).scalars())


def remove_these(connection: Connection, indexes: Sequence[int]) -> None:
    connection.execute(_REMOVE, {"indexes": list(indexes)})


def remove(connection: Connection, chosen: ColumnElement[bool]) -> list[str]:
    """Take messages away; the task ids of those that were requests."""
    gone = connection.execute(delete(messages).where(chosen).returning(messages.c.task_id))
    return [task_id for task_id in gone.scalars() if task_id is not None]
