"""Queues of messages: put, read, pushed to consumers of groups, committed, deleted.

A queue is a name and an owner: nobody sees another one's messages. A message is delivered to one
consumer of each group that watches, and is gone once all of these groups have committed it. What a
consumer has not committed when its connection ends goes to another one of its group.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from sd_cloud.errors import BadRequest
from sd_cloud.store.database import Database
from sd_cloud.store.schema import consumers, deliveries, ended_queues, messages, tasks

#: Messages that one push looks at to find those with the tags a consumer asked for.
LOOKED_AT = 500
ENDED_TASKS = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Queue:
    name: str
    owner: str


@dataclass(frozen=True)
class Message:
    """``index`` grows with each message of the service; ``task_id`` is the task of an input message."""

    index: int
    tags: Mapping[str, str]
    data: bytes
    message: str = ""
    task_id: str | None = None
    priority: int = 0


@dataclass(frozen=True)
class Consumer:
    """One watching connection. ``window``: messages it may hold uncommitted."""

    connection: str
    queue: Queue
    group: str
    uid: str
    window: int
    auto_commit: bool = False
    first_index: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Watching:
    """A consumer as the attributes of its queue tell it."""

    uid: str
    group: str
    window: int
    auto_commit: bool
    uncommitted: int
    seconds: float


@dataclass(frozen=True)
class State:
    length: int
    first: int
    last: int
    ended: bool
    watching: tuple[Watching, ...]


class QueueEnded(BadRequest):
    """The queue takes no more messages."""

    code, http_status = "queue_ended", 409


class MessageStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    # -- in and out ---------------------------------------------------------------------------

    async def put(
        self,
        queue: Queue,
        data: bytes,
        tags: Mapping[str, str],
        *,
        request_id: str,
        priority: int = 0,
        task_id: str | None = None,
        message: str = "",
    ) -> int:
        """Add a message; its index. Raises QueueEnded."""

        def work(connection: Connection) -> int:
            if connection.execute(_ended(queue)).first() is not None:
                raise QueueEnded("this queue has ended (_eos_); truncate it to use it again", field="_eos_")
            return self._insert(connection, queue, data, tags, request_id, priority, task_id, message)

        return await self._database.write(work)

    async def finish(self, task_id: str, sink: str, data: bytes, message: str) -> bool:
        """The task of an input message is over: put what came of it into the owner's sink, with the
        input's tags, and take the input away, both at once. False when that was done already."""

        def work(connection: Connection) -> bool:
            row = connection.execute(
                select(messages).where(messages.c.task_id == task_id).with_for_update()
            ).one_or_none()
            if row is None:
                return False
            connection.execute(delete(messages).where(messages.c.number == row.number))
            tags = json.loads(row.tags)
            self._insert(
                connection, Queue(sink, row.owner), data, tags, row.request_id, row.priority, None, message
            )
            return True

        return await self._database.write(work)

    async def unfinished(self) -> list[tuple[str, str | None, float]]:
        """Task ids of input messages, the state of each task, and when the message was put.

        A state of None: the task was never accepted, or is being recorded at this moment.
        """
        wanted = (
            select(messages.c.task_id, tasks.c.state, messages.c.submitted)
            .outerjoin(tasks, tasks.c.id == messages.c.task_id)
            .where(messages.c.task_id.is_not(None))
            .order_by(messages.c.number)
        )
        return await self._database.read(
            lambda c: [(r.task_id, r.state, r.submitted) for r in c.execute(wanted)]
        )

    async def drop(self, task_id: str) -> None:
        """Take an input message away: its task was not accepted."""
        await self._database.write(lambda c: c.execute(delete(messages).where(messages.c.task_id == task_id)))

    async def read(
        self, queue: Queue, *, first_index: int, length: int, tags: Mapping[str, str]
    ) -> list[Message]:
        """Messages from an index on (0: all; below 0: the last), by priority and age."""

        def work(connection: Connection) -> list[Message]:
            start = first_index
            if start < 0:
                newest = select(func.max(messages.c.number)).where(*_of(queue))
                start = connection.execute(newest).scalar_one() or 0
            wanted = _ordered(select(messages).where(*_of(queue), messages.c.number >= start))
            return _matching(connection, wanted, tags, length)

        return await self._database.read(work)

    async def remove(self, queue: Queue, indexes: Sequence[int]) -> list[Message]:
        """Delete messages; those that were there."""

        def work(connection: Connection) -> list[Message]:
            chosen = and_(*_of(queue), messages.c.number.in_(indexes))
            return self._delete(connection, chosen)

        return await self._database.write(work)

    async def truncate(self, queue: Queue, before: int) -> list[Message]:
        """Delete the messages with a smaller index; an ended queue takes messages again."""

        def work(connection: Connection) -> list[Message]:
            connection.execute(
                delete(ended_queues).where(
                    ended_queues.c.queue == queue.name, ended_queues.c.owner == queue.owner
                )
            )
            return self._delete(connection, and_(*_of(queue), messages.c.number < before))

        return await self._database.write(work)

    async def end(self, queue: Queue, *, forced: bool) -> None:
        """Take no more messages. Consumers are told when they have had all, or at once."""

        def work(connection: Connection) -> None:
            if connection.execute(_ended(queue)).first() is None:
                connection.execute(
                    insert(ended_queues).values(queue=queue.name, owner=queue.owner, forced=forced)
                )
            elif forced:
                connection.execute(
                    update(ended_queues)
                    .where(ended_queues.c.queue == queue.name, ended_queues.c.owner == queue.owner)
                    .values(forced=True)
                )
            self._announce(connection, queue)

        await self._database.write(work)

    # -- pushing ------------------------------------------------------------------------------

    async def arrive(self, consumer: Consumer) -> None:
        await self._database.write(
            lambda c: c.execute(
                insert(consumers).values(
                    connection=consumer.connection,
                    queue=consumer.queue.name,
                    owner=consumer.queue.owner,
                    grp=consumer.group,
                    uid=consumer.uid,
                    window=consumer.window,
                    auto_commit=consumer.auto_commit,
                    process=self._database.process,
                    since=time.time(),
                )
            )
        )

    async def leave(self, consumer: Consumer) -> None:
        """What it has not committed can go to others."""

        def work(connection: Connection) -> None:
            _release(connection, deliveries.c.connection == consumer.connection)
            connection.execute(delete(consumers).where(consumers.c.connection == consumer.connection))
            self._announce(connection, consumer.queue)

        await self._database.write(work)

    async def next_for(self, consumer: Consumer, *, refused: Iterable[int] = ()) -> list[Message]:
        """Deliver to a consumer what its window has room for; ``refused`` it does not get again."""
        declined = list(refused)

        def work(connection: Connection) -> list[Message]:
            held = connection.execute(
                select(func.count())
                .select_from(deliveries)
                .where(deliveries.c.connection == consumer.connection, ~deliveries.c.committed)
            ).scalar_one()
            if held >= consumer.window:
                return []
            own = and_(deliveries.c.message == messages.c.number, deliveries.c.grp == consumer.group)
            wanted = _ordered(
                select(messages)
                .outerjoin(deliveries, own)
                .where(
                    *_of(consumer.queue),
                    messages.c.number >= consumer.first_index,
                    deliveries.c.message.is_(None),
                    messages.c.number.not_in(declined),
                )
            ).with_for_update(of=messages, skip_locked=True)
            found = _matching(connection, wanted, consumer.tags, consumer.window - held)
            if found:
                connection.execute(
                    insert(deliveries),
                    [
                        {
                            "message": one.index,
                            "grp": consumer.group,
                            "consumer": consumer.uid,
                            "connection": consumer.connection,
                            "process": self._database.process,
                            "committed": False,
                        }
                        for one in found
                    ],
                )
            return found

        return await self._database.write(work)

    async def commit(self, queue: Queue, group: str, indexes: Sequence[int]) -> None:
        """A group is done with these messages; those no other watching group waits for are gone."""

        def work(connection: Connection) -> None:
            there = list(
                connection.execute(
                    select(messages.c.number).where(*_of(queue), messages.c.number.in_(indexes))
                ).scalars()
            )
            groups = set(
                connection.execute(
                    select(consumers.c.grp)
                    .where(consumers.c.queue == queue.name, consumers.c.owner == queue.owner)
                    .distinct()
                ).scalars()
            ) - {group}
            gone = there
            if groups:
                gone = [one for one in there if not self._missing(connection, one, groups)]
                for index in set(there) - set(gone):
                    done = update(deliveries).where(deliveries.c.message == index, deliveries.c.grp == group)
                    if not connection.execute(done.values(committed=True)).rowcount:
                        connection.execute(
                            insert(deliveries).values(message=index, grp=group, committed=True)
                        )
            self._delete(connection, messages.c.number.in_(gone))
            self._announce(connection, queue)

        await self._database.write(work)

    @staticmethod
    def _missing(connection: Connection, index: int, groups: set[str]) -> bool:
        done = connection.execute(
            select(deliveries.c.grp).where(deliveries.c.message == index, deliveries.c.committed)
        ).scalars()
        return bool(groups - set(done))

    async def refuse(self, queue: Queue, group: str, indexes: Sequence[int]) -> None:
        """A consumer could not use these messages: another one of its group gets them."""

        def work(connection: Connection) -> None:
            _release(connection, and_(deliveries.c.grp == group, deliveries.c.message.in_(indexes)))
            self._announce(connection, queue)

        await self._database.write(work)

    async def forget_dead(self) -> None:
        """What consumers of processes that are dead had not committed can go to others."""

        def mentioned(connection: Connection) -> set[str]:
            found = set(connection.execute(select(consumers.c.process).distinct()).scalars())
            found |= set(connection.execute(select(deliveries.c.process).distinct()).scalars()) - {None}
            return found - {self._database.process}

        others = await self._database.read(mentioned)
        presence = self._database.presence
        if not others or presence is None:
            return
        dead = await asyncio.to_thread(presence.dead, others)

        def work(connection: Connection) -> None:
            _release(connection, deliveries.c.process.in_(dead))
            connection.execute(delete(consumers).where(consumers.c.process.in_(dead)))

        if dead:
            await self._database.write(work)

    # -- asking -------------------------------------------------------------------------------

    async def count(self, queue: Queue, tags: Mapping[str, str], *, priority: int | None = None) -> int:
        def work(connection: Connection) -> int:
            wanted = select(messages).where(*_of(queue))
            if priority is not None:
                wanted = wanted.where(messages.c.priority == priority)
            if not tags:
                return connection.execute(select(func.count()).select_from(wanted.subquery())).scalar_one()
            return len(_matching(connection, wanted, tags, None))

        return await self._database.read(work)

    async def place(self, queue: Queue, index: int) -> tuple[bool, str, int] | None:
        """Of one message: is it being worked on, by which consumer, and how many are before it."""

        def work(connection: Connection) -> tuple[bool, str, int] | None:
            row = connection.execute(
                select(messages.c.priority, messages.c.task_id, tasks.c.state)
                .outerjoin(tasks, tasks.c.id == messages.c.task_id)
                .where(*_of(queue), messages.c.number == index)
            ).one_or_none()
            if row is None:
                return None
            if row.task_id is not None and row.state not in (None, "pending", "suspended"):
                return True, "service", 0
            holder = connection.execute(
                select(deliveries.c.grp, deliveries.c.consumer).where(
                    deliveries.c.message == index, ~deliveries.c.committed
                )
            ).first()
            if holder is not None:
                return True, f"{holder.grp}.{holder.consumer}", 0
            before = (
                select(func.count())
                .select_from(messages)
                .where(
                    *_of(queue),
                    or_(
                        messages.c.priority > row.priority,
                        and_(messages.c.priority == row.priority, messages.c.number < index),
                    ),
                )
            )
            return False, "", connection.execute(before).scalar_one()

        return await self._database.read(work)

    async def state(self, queue: Queue) -> State:
        def work(connection: Connection) -> State:
            numbers = connection.execute(
                select(func.count(), func.min(messages.c.number), func.max(messages.c.number)).where(
                    *_of(queue)
                )
            ).one()
            held = (
                select(func.count())
                .select_from(deliveries)
                .where(deliveries.c.connection == consumers.c.connection, ~deliveries.c.committed)
                .scalar_subquery()
            )
            rows = connection.execute(
                select(consumers, held.label("held")).where(
                    consumers.c.queue == queue.name, consumers.c.owner == queue.owner
                )
            )
            watching = tuple(
                Watching(r.uid, r.grp, r.window, r.auto_commit, r.held, time.time() - r.since) for r in rows
            )
            ended = connection.execute(_ended(queue)).first() is not None
            return State(numbers[0], numbers[1] or 0, numbers[2] or 0, ended, watching)

        return await self._database.read(work)

    async def ended(self, queue: Queue) -> tuple[bool, bool]:
        """Has it ended, and was it forced?"""
        row = await self._database.read(lambda c: c.execute(_ended(queue)).one_or_none())
        return row is not None, bool(row is not None and row.forced)

    def listen(self, queue: Queue, heard: Callable[[], None]) -> Callable[[], None]:
        """Call ``heard`` when something about the queue has changed."""
        return self._database.listen(_topic(queue), lambda _: heard())

    # -- within a transaction -----------------------------------------------------------------

    def _insert(
        self,
        connection: Connection,
        queue: Queue,
        data: bytes,
        tags: Mapping[str, str],
        request_id: str,
        priority: int,
        task_id: str | None,
        message: str,
    ) -> int:
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
        self._announce(connection, queue)
        return int(index)

    def _delete(self, connection: Connection, chosen: ColumnElement[bool]) -> list[Message]:
        found = [_message(row) for row in connection.execute(select(messages).where(chosen))]
        numbers = [one.index for one in found]
        connection.execute(delete(deliveries).where(deliveries.c.message.in_(numbers)))
        connection.execute(delete(messages).where(messages.c.number.in_(numbers)))
        return found

    def _announce(self, connection: Connection, queue: Queue) -> None:
        self._database.announce(connection, _topic(queue))


def _topic(queue: Queue) -> str:
    return f"queue:{queue.name}:{queue.owner}".replace(" ", "_")


def _of(queue: Queue) -> tuple[ColumnElement[bool], ...]:
    return messages.c.queue == queue.name, messages.c.owner == queue.owner


def _ended(queue: Queue) -> Select[Any]:
    return select(ended_queues).where(ended_queues.c.queue == queue.name, ended_queues.c.owner == queue.owner)


def _ordered(wanted: Select[Any]) -> Select[Any]:
    return wanted.order_by(messages.c.priority.desc(), messages.c.number)


def _release(connection: Connection, chosen: ColumnElement[bool]) -> None:
    connection.execute(delete(deliveries).where(chosen, ~deliveries.c.committed))


def _matching(
    connection: Connection, wanted: Select[Any], tags: Mapping[str, str], length: int | None
) -> list[Message]:
    """The first messages that have all of these tags."""
    if not tags:
        every = connection.execute(wanted.limit(length) if length is not None else wanted)
        return [_message(row) for row in every]
    if "requestId" in tags:
        wanted = wanted.where(messages.c.request_id == tags["requestId"])
    found: list[Message] = []
    offset = 0
    while length is None or len(found) < length:
        rows = connection.execute(wanted.limit(LOOKED_AT).offset(offset)).all()
        found += [one for one in map(_message, rows) if tags.items() <= one.tags.items()]
        if len(rows) < LOOKED_AT:
            break
        offset += LOOKED_AT
    return found if length is None else found[:length]


def _message(row: Row[Any]) -> Message:
    return Message(row.number, json.loads(row.tags), bytes(row.data), row.message, row.task_id, row.priority)
