"""Rows of messages: which are meant, in which order, how one is added or taken away."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, insert, select

from sd_cloud.store.queues import Message, Queue
from sd_cloud.store.schema import ended_queues, messages

#: Messages that are looked at in one go to find those with the tags that were asked for.
LOOKED_AT = 500


def topic(queue: Queue) -> str:
    """What is announced when something about the queue has changed."""
    return f"queue:{queue.name}:{queue.owner}".replace(" ", "_")


def of(queue: Queue) -> tuple[ColumnElement[bool], ...]:
    return messages.c.queue == queue.name, messages.c.owner == queue.owner


def ended(queue: Queue) -> Select[Any]:
    return select(ended_queues).where(ended_queues.c.queue == queue.name, ended_queues.c.owner == queue.owner)


def in_order(wanted: Select[Any]) -> Select[Any]:
    return wanted.order_by(messages.c.priority.desc(), messages.c.number)


def with_tags(
    connection: Connection, wanted: Select[Any], tags: Mapping[str, str], length: int | None
) -> list[Message]:
    """The first messages that have all of these tags."""
    if not tags:
        every = connection.execute(wanted.limit(length) if length is not None else wanted)
        return [message_of(row) for row in every]
    if "requestId" in tags:
        wanted = wanted.where(messages.c.request_id == tags["requestId"])
    found: list[Message] = []
    offset = 0
    while length is None or len(found) < length:
        rows = connection.execute(wanted.limit(LOOKED_AT).offset(offset)).all()
        found += [one for one in map(message_of, rows) if tags.items() <= one.tags.items()]
        if len(rows) < LOOKED_AT:
            break
        offset += LOOKED_AT
    return found if length is None else found[:length]


def message_of(row: Row[Any]) -> Message:
    return Message(row.number, json.loads(row.tags), bytes(row.data), row.message, row.task_id, row.priority)


def add(
    connection: Connection,
    queue: Queue,
    data: bytes,
    tags: Mapping[str, str],
    *,
    request_id: str,
    priority: int,
    task_id: str | None = None,
    message: str = "",
) -> int:
    """The new message's index."""
    index = connection.execute(
        insert(messages)
        .values(
            queue=queue.name,
            owner=queue.owner,
            request_id=request_id,
            task_id=task_id,
            priority=priority,
            tags=json.dumps(dict(tags), ensure_ascii=False),
            data=data,
            message=message,
            submitted=time.time(),
        )
        .returning(messages.c.number)
    ).scalar_one()
    return int(index)


def remove(connection: Connection, chosen: ColumnElement[bool]) -> list[str]:
    """Take messages away; the task ids of those that were requests."""
    gone = connection.execute(delete(messages).where(chosen).returning(messages.c.task_id))
    return [task_id for task_id in gone.scalars() if task_id is not None]
