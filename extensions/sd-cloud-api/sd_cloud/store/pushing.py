"""Messages pushed to consumers of groups, committed by them, handed over when they are gone.

A delivery is only ever made, committed or refused by who has locked its message's row, rows in the
queue's order: two processes that look at the same messages at the same moment do so one after the
other. Locked rows are waited for, not passed over: it may be another group that is having a look.

A delivery is made only to a consumer whose own row is there and locked: one that is leaving may still be
having a look (a statement goes on after nobody waits for it any more), and what it got after it had given
back what it held would be nobody's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, Connection, and_, bindparam, delete, func, insert, or_, select, update

from sd_cloud.store import message_rows as rows
from sd_cloud.store.database import Database
from sd_cloud.store.queues import Consumer, Message, NotWatching, Queue, Watching
from sd_cloud.store.schema import consumers, deliveries, messages

_OWN = and_(deliveries.c.message == messages.c.number, deliveries.c.grp == bindparam("group"))
#: How many messages a consumer holds; no row where it has left. Locks it, so that it can't leave meanwhile.
_HELD = (
    select(
        select(func.count())
        .select_from(deliveries)
        .where(deliveries.c.connection == bindparam("connection"), ~deliveries.c.committed)
        .scalar_subquery()
    )
    .select_from(consumers)
    .where(consumers.c.connection == bindparam("connection"))
    .with_for_update(of=consumers)
)
_UNDELIVERED = rows.in_order(
    select(messages)
    .outerjoin(deliveries, _OWN)
    .where(
        *rows.OF_NAMED,
        messages.c.number >= bindparam("first"),
        deliveries.c.message.is_(None),
        messages.c.number.not_in(bindparam("declined", expanding=True)),
    )
).with_for_update(of=messages)
_DELIVERED = select(deliveries.c.message).where(
    deliveries.c.grp == bindparam("group"),
    deliveries.c.message.in_(bindparam("indexes", expanding=True)),
)
_DELIVER = insert(deliveries)
_THESE = rows.in_order(
    select(messages.c.number).where(
        *rows.OF_NAMED, messages.c.number.in_(bindparam("indexes", expanding=True))
    )
).with_for_update()
_GROUPS = (
    select(consumers.c.grp)
    .where(consumers.c.queue == bindparam("queue"), consumers.c.owner == bindparam("owner"))
    .distinct()
)


class Pushing:
    def __init__(self, database: Database) -> None:
        self._database = database

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
            connection.execute(delete(consumers).where(consumers.c.connection == consumer.connection))
            _release(connection, deliveries.c.connection == consumer.connection)
            self._announce(connection, consumer.queue)

        await self._database.write(work)

    async def next_for(self, consumer: Consumer, *, refused: Iterable[int] = ()) -> list[Message]:
        """Deliver to a consumer what its window has room for; ``refused`` it does not get again.

        Raises NotWatching when it has left, or was taken for dead.
        """

        def work(connection: Connection) -> list[Message] | None:
            held = connection.execute(_HELD, {"connection": consumer.connection}).scalar_one_or_none()
            if held is None:
                raise NotWatching
            if held >= consumer.window:
                return []
            values = {
                **rows.named(consumer.queue), "group": consumer.group, "first": consumer.first_index,
                "declined": list(refused),
            }  # fmt: skip
            room = consumer.window - held
            found = rows.with_tags(connection, _UNDELIVERED, consumer.tags, room, values)
            return self._delivered(connection, consumer, found) or None if found else []

        # Others were quicker: another look, in a transaction that has locked nothing yet.
        while (delivered := await self._database.write(work)) is None:
            pass
        return delivered

    def _delivered(
        self, connection: Connection, consumer: Consumer, found: Sequence[Message]
    ) -> list[Message]:
        """Of the locked messages those that are the consumer's now."""
        # What another process delivered between this transaction's look and its lock is seen now.
        indexes = [one.index for one in found]
        theirs = connection.execute(_DELIVERED, {"group": consumer.group, "indexes": indexes}).scalars().all()
        own = [one for one in found if one.index not in theirs]
        if own:
            connection.execute(
                _DELIVER,
                [
                    {
                        "message": one.index,
                        "grp": consumer.group,
                        "consumer": consumer.uid,
                        "connection": consumer.connection,
                        "process": self._database.process,
                        "committed": False,
                    }
                    for one in own
                ],
            )
        return own

    async def commit(self, queue: Queue, group: str, indexes: Sequence[int]) -> None:
        """A group is done with these messages; those no other watching group waits for are gone."""

        def work(connection: Connection) -> None:
            there = _locked(connection, queue, indexes)
            groups = set(connection.execute(_GROUPS, rows.named(queue)).scalars()) - {group}
            gone = [one for one in there if not (groups and self._missing(connection, one, groups))]
            for index in set(there) - set(gone):
                done = update(deliveries).where(deliveries.c.message == index, deliveries.c.grp == group)
                if not connection.execute(done.values(committed=True)).rowcount:
                    connection.execute(insert(deliveries).values(message=index, grp=group, committed=True))
            rows.remove_these(connection, gone)
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
            there = _locked(connection, queue, indexes)
            _release(connection, and_(deliveries.c.grp == group, deliveries.c.message.in_(there)))
            self._announce(connection, queue)

        await self._database.write(work)

    async def is_done(self, consumer: Consumer) -> bool:
        """Has its group committed every message that it may get?"""
        own = and_(deliveries.c.message == messages.c.number, deliveries.c.grp == consumer.group)
        wanted = (
            select(messages)
            .outerjoin(deliveries, own)
            .where(
                *rows.of(consumer.queue),
                messages.c.number >= consumer.first_index,
                or_(deliveries.c.message.is_(None), ~deliveries.c.committed),
            )
        )
        return not await self._database.read(lambda c: rows.with_tags(c, wanted, consumer.tags, 1))

    async def watching(self, queue: Queue) -> tuple[Watching, ...]:
        held = and_(deliveries.c.connection == consumers.c.connection, ~deliveries.c.committed)
        wanted = (
            select(
                consumers,
                func.count(deliveries.c.message).label("held"),
                func.coalesce(func.max(deliveries.c.message), 0).label("last"),
            )
            .outerjoin(deliveries, held)
            .where(consumers.c.queue == queue.name, consumers.c.owner == queue.owner)
            .group_by(consumers.c.connection)
            .order_by(consumers.c.since)
        )
        found = await self._database.read(lambda c: c.execute(wanted).all())
        now = time.time()
        return tuple(
            Watching(r.uid, r.grp, r.window, r.auto_commit, r.held, r.last, now - r.since) for r in found
        )

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
            left = select(consumers.c.queue, consumers.c.owner).where(consumers.c.process.in_(dead))
            queues = {Queue(*row) for row in connection.execute(left)}
            connection.execute(delete(consumers).where(consumers.c.process.in_(dead)))
            _release(connection, deliveries.c.process.in_(dead))
            for queue in queues:
                self._announce(connection, queue)

        if dead:
            await self._database.write(work)

    def _announce(self, connection: Connection, queue: Queue) -> None:
        self._database.announce(connection, rows.topic(queue))


def _locked(connection: Connection, queue: Queue, indexes: Sequence[int]) -> list[int]:
    """Those of the messages that are there."""
    values = {**rows.named(queue), "indexes": list(indexes)}
    return list(connection.execute(_THESE, values).scalars())


def _release(connection: Connection, chosen: ColumnElement[bool]) -> None:
    connection.execute(delete(deliveries).where(chosen, ~deliveries.c.committed))
