"""Messages of queues: put, read, searched, taken away. :mod:`sd_cloud.store.pushing` has the consumers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update

from sd_cloud.store import message_rows as rows
from sd_cloud.store.base import ENDED
from sd_cloud.store.database import Database
from sd_cloud.store.queues import Extent, Message, Queue, QueueEnded
from sd_cloud.store.schema import deliveries, ended_queues, messages, tasks

#: Messages that share one transaction at most.
PUT_AT_ONCE = 500

_Waiting = tuple[Queue, Mapping[str, Any], "asyncio.Future[int]"]


class MessageStore:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[_Waiting] = []
        self._putting: asyncio.Task[None] | None = None

    # -- in and out ---------------------------------------------------------------------------

    async def put(
        self, queue: Queue, data: bytes, tags: Mapping[str, str], *, request_id: str, priority: int = 0
    ) -> int:
        """Add a message; its index. Raises QueueEnded.

        Those that are put while a transaction is under way share the next one.
        """
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        row = rows.new(queue, data, tags, request_id=request_id, priority=priority)
        self._waiting.append((queue, row, answer))
        if self._putting is None or self._putting.done():
            self._putting = asyncio.create_task(self._put_waiting())
        return await answer

    async def _put_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:PUT_AT_ONCE], self._waiting[PUT_AT_ONCE:]
            try:
                indexes = await self._database.write(
                    partial(self._put_all, batch=[(queue, row) for queue, row, _ in batch])
                )
            except Exception as error:
                for _, _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, _, answer), index in zip(batch, indexes, strict=True):
                if answer.done():  # whoever asked has hung up
                    continue
                if index is None:
                    answer.set_exception(_has_ended())
                else:
                    answer.set_result(index)

    def _put_all(
        self, connection: Connection, batch: Sequence[tuple[Queue, Mapping[str, Any]]]
    ) -> list[int | None]:
        """Their indexes; None where the queue has ended."""
        queues = {queue for queue, _ in batch}
        ended = {queue for queue in queues if rows.ended(connection, queue) is not None}
        taken = [row for queue, row in batch if queue not in ended]
        indexes = iter(rows.add(connection, taken) if taken else ())
        for queue in queues - ended:
            self._announce(connection, queue)
        return [None if queue in ended else next(indexes) for queue, _ in batch]

    def put_within(
        self,
        connection: Connection,
        queue: Queue,
        data: bytes,
        tags: Mapping[str, str],
        *,
        request_id: str,
        priority: int = 0,
        task_id: str | None = None,
    ) -> int:
        """Add a message in a transaction that does something beside it: records the message's task."""
        row = rows.new(queue, data, tags, request_id=request_id, priority=priority, task_id=task_id)
        [index] = self._put_all(connection, [(queue, row)])
        if index is None:
            raise _has_ended()
        if task_id is not None:
            connection.execute(update(tasks).where(tasks.c.id == task_id).values(message=index))
        return index

    async def index_of(self, task_id: str) -> int:
        """The index that the message which asked for this task had, or has."""
        wanted = select(tasks.c.message).where(tasks.c.id == task_id)
        return int(await self._database.read(lambda c: c.execute(wanted).scalar_one()) or 0)

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
            queue = Queue(sink, row.owner)
            answer = rows.new(
                queue, data, json.loads(row.tags), request_id=row.request_id, priority=row.priority,
                message=message,
            )  # fmt: skip
            rows.add(connection, [answer])
            self._announce(connection, queue)
            return True

        return await self._database.write(work)

    async def unfinished(self) -> list[tuple[str, bool]]:
        """Task ids of input messages whose task is over, or (False) is not there any more."""
        wanted = (
            select(messages.c.task_id, tasks.c.id.is_not(None))
            .outerjoin(tasks, tasks.c.id == messages.c.task_id)
            .where(messages.c.task_id.is_not(None), or_(tasks.c.id.is_(None), tasks.c.state.in_(ENDED)))
            .order_by(messages.c.number)
        )
        return await self._database.read(lambda c: [(row[0], bool(row[1])) for row in c.execute(wanted)])

    async def drop(self, task_id: str) -> None:
        """Take an input message away whose task nobody can finish."""
        await self._database.write(lambda c: c.execute(delete(messages).where(messages.c.task_id == task_id)))

    async def read(
        self, queue: Queue, *, first_index: int, length: int, tags: Mapping[str, str], take: bool = False
    ) -> list[Message]:
        """Messages from an index on (0: all; below 0: the last), by priority and age.

        ``take``: they are gone with that; two readers never take the same one.
        """

        def work(connection: Connection) -> list[Message]:
            start = first_index
            if start < 0:
                newest = select(func.max(messages.c.number)).where(*rows.of(queue))
                start = connection.execute(newest).scalar_one() or 0
            wanted = rows.in_order(select(messages).where(*rows.of(queue), messages.c.number >= start))
            if not take:
                return rows.with_tags(connection, wanted, tags, length)
            locked = wanted.with_for_update()
            found = rows.with_tags(connection, locked, tags, length)
            rows.remove_these(connection, [one.index for one in found])
            return found

        return await (self._database.write(work) if take else self._database.read(work))

    async def remove(self, queue: Queue, indexes: Sequence[int]) -> list[str]:
        """Delete messages; the task ids of those that were requests."""
        chosen = and_(*rows.of(queue), messages.c.number.in_(indexes))
        return await self._database.write(lambda connection: rows.remove(connection, chosen))

    async def truncate(self, queue: Queue, before: int) -> list[str]:
        """The same for all with a smaller index; an ended queue takes messages again."""

        def work(connection: Connection) -> list[str]:
            connection.execute(
                delete(ended_queues).where(
                    ended_queues.c.queue == queue.name, ended_queues.c.owner == queue.owner
                )
            )
            return rows.remove(connection, and_(*rows.of(queue), messages.c.number < before))

        return await self._database.write(work)

    async def end(self, queue: Queue, *, forced: bool) -> None:
        """Take no more messages. Consumers are told when they have had all, or at once."""

        def work(connection: Connection) -> None:
            if rows.ended(connection, queue) is None:
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

    # -- asking -------------------------------------------------------------------------------

    async def count(self, queue: Queue, tags: Mapping[str, str], *, priority: int | None = None) -> int:
        def work(connection: Connection) -> int:
            wanted = select(messages).where(*rows.of(queue))
            if priority is not None:
                wanted = wanted.where(messages.c.priority == priority)
            if not tags:
                return connection.execute(select(func.count()).select_from(wanted.subquery())).scalar_one()
            return len(rows.with_tags(connection, wanted, tags, None))

        return await self._database.read(work)

    async def place(self, queue: Queue, index: int) -> tuple[bool, str, int] | None:
        """Of one message: is it being worked on, by which consumer, and how many are before it."""

        def work(connection: Connection) -> tuple[bool, str, int] | None:
            row = connection.execute(
                select(messages.c.priority, messages.c.task_id, tasks.c.state)
                .outerjoin(tasks, tasks.c.id == messages.c.task_id)
                .where(*rows.of(queue), messages.c.number == index)
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
                    *rows.of(queue),
                    or_(
                        messages.c.priority > row.priority,
                        and_(messages.c.priority == row.priority, messages.c.number < index),
                    ),
                )
            )
            return False, "", connection.execute(before).scalar_one()

        return await self._database.read(work)

    async def extent(self, queue: Queue) -> Extent:
        def work(connection: Connection) -> Extent:
            numbers = select(func.count(), func.min(messages.c.number), func.max(messages.c.number))
            length, first, last = connection.execute(numbers.where(*rows.of(queue))).one()
            ended = rows.ended(connection, queue) is not None
            return Extent(length, first or 0, last or 0, ended)

        return await self._database.read(work)

    async def ended(self, queue: Queue) -> tuple[bool, bool]:
        """Has it ended, and was it forced?"""
        row = await self._database.read(lambda connection: rows.ended(connection, queue))
        return row is not None, bool(row is not None and row.forced)

    def listen(self, queue: Queue, heard: Callable[[], None]) -> Callable[[], None]:
        """Call ``heard`` when something about the queue has changed."""
        return self._database.listen(rows.topic(queue), lambda _: heard())

    def _announce(self, connection: Connection, queue: Queue) -> None:
        self._database.announce(connection, rows.topic(queue))


def _has_ended() -> QueueEnded:
    return QueueEnded("this queue has ended (_eos_); truncate it to use it again", field="_eos_")
