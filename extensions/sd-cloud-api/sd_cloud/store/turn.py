"""Whose turn it is, and taking it."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, exists, func, or_, select, update

from sd_cloud.store.base import OVERTAKES
from sd_cloud.store.schema import owners, tasks


def next_in_turn(process: str) -> Select[Any]:
    """The task whose turn it is: highest priority, then the least recently served owner, then age.

    Not one whose ``order_key`` is running or has an older task waiting, nor one that only another
    process may run. It is locked, and one that another process has locked is passed over.
    """
    other = tasks.alias("other")
    held_back = exists().where(
        other.c.order_key == tasks.c.order_key,
        or_(
            other.c.state == "running",
            and_(other.c.state == "pending", other.c.number < tasks.c.number),
        ),
    )
    return (
        select(
            tasks.c.number, tasks.c.owner, tasks.c.checkpoint, tasks.c.priority, tasks.c.overtaken
        )
        .outerjoin(owners, owners.c.name == tasks.c.owner)
        .where(
            tasks.c.state == "pending",
            tasks.c.ready,
            or_(tasks.c.process.is_(None), tasks.c.process == process),
            or_(tasks.c.order_key.is_(None), ~held_back),
        )
        .order_by(tasks.c.priority.desc(), func.coalesce(owners.c.served, 0), tasks.c.number)
        .limit(1)
        .with_for_update(of=tasks, skip_locked=True)
    )  # fmt: skip


def take(connection: Connection, process: str, loaded: str | None) -> Row[Any] | None:
    """The next task, running from now on; or one for ``loaded`` that may overtake it."""
    first = connection.execute(next_in_turn(process)).one_or_none()
    if first is None:
        return None
    chosen = first
    if loaded is not None and first.checkpoint != loaded and first.overtaken < OVERTAKES:
        other = connection.execute(
            next_in_turn(process).where(tasks.c.checkpoint == loaded, tasks.c.priority == first.priority)
        ).one_or_none()
        if other is not None:
            chosen = other
            connection.execute(
                update(tasks).where(tasks.c.number == first.number).values(overtaken=tasks.c.overtaken + 1)
            )
    _served(connection, chosen.owner)
    return connection.execute(
        update(tasks)
        .where(tasks.c.number == chosen.number, tasks.c.state == "pending")
        .values(state="running", attempts=tasks.c.attempts + 1, scheduled=time.time(), process=process)
        .returning(tasks)
    ).one()


def _served(connection: Connection, owner: str) -> None:
    """Note that it was this owner's turn: an upsert both databases know."""
    now = time.time_ns()
    from sqlalchemy.dialects import postgresql, sqlite

    upsert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(owners)
    connection.execute(
        upsert.values(name=owner, served=now).on_conflict_do_update(
            index_elements=[owners.c.name], set_={"served": now}
        )
    )
