"""Tasks in SQL: recorded, claimed in order, ended once, kept for a while. SQLite or PostgreSQL.

Which task is next is one query, :func:`next_in_turn`. `MOVES` in :mod:`sd_cloud.store.base` says
which way a task may go; a task is moved only by an UPDATE that names the state it comes from.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from sd_cloud.errors import (
    BadRequest,
    EngineFailed,
    IdempotencyConflict,
    QueueFull,
    ServiceError,
    ShuttingDown,
)
from sd_cloud.job import Job, Outcome
from sd_cloud.settings import Settings
from sd_cloud.store import codec, quota, usage
from sd_cloud.store.base import ENDED, OVERTAKES, Recovered, State, Task
from sd_cloud.store.database import Database, open_database
from sd_cloud.store.schema import forgotten, owners, tasks, webhooks

DAY_SECONDS = 86400.0
#: How long it is known that a task was there and has expired.
REMEMBERED_SECONDS = 30 * DAY_SECONDS
#: Claims that meet another process's claim of the same order key are tried again this often.
CLAIM_TRIES = 5


def default_retention(dialect: str) -> float:
    """Seconds that a task and its pictures are kept: DashScope's guide says 24 hours."""
    return DAY_SECONDS if dialect == "dashscope" else 30 * DAY_SECONDS


def open_store(settings: Settings) -> SqlStore:
    """The store a service was started with. Raises DatabaseRefused."""
    hours = settings.task_retention_hours
    database = open_database(settings.state_dir, settings.database_url)
    if hours is None:
        return SqlStore(database)
    return SqlStore(database, retention=lambda dialect: hours * 3600.0)


class SqlStore:
    """The tasks of one database."""

    def __init__(self, database: Database, *, retention: Callable[[str], float] = default_retention) -> None:
        self.database = database
        self.durable = not database.private
        self._retention = retention
        self._work = asyncio.Event()
        self._listening = False

    @property
    def process(self) -> str:
        return self.database.process

    # -- taking -------------------------------------------------------------------------------

    async def add(
        self, job: Job, *, limit: int, kept: bool = True, idempotency: tuple[str, str] | None = None
    ) -> Task:
        """Record a job as pending.

        ``kept``: its result can be fetched after a restart; a job that is not is failed when the
        process dies. ``idempotency``: the caller's key and a fingerprint of the request; when that
        owner used the key before, the answer is the task it made then (its id is another one).
        Raises QueueFull when ``limit`` tasks are waiting, QuotaExceeded, IdempotencyConflict.
        """
        text = await asyncio.to_thread(codec.job_to_text, job)
        key, fingerprint = idempotency or (None, None)

        def work(connection: Connection) -> Task | str:
            if key is not None:
                earlier = connection.execute(
                    select(tasks.c.id, tasks.c.fingerprint).where(
                        tasks.c.owner == job.owner, tasks.c.idempotency_key == key
                    )
                ).one_or_none()
                if earlier is not None:
                    if earlier.fingerprint != fingerprint:
                        raise IdempotencyConflict(
                            f"the key {key!r} was used for another request; use a new key",
                            field="Idempotency-Key",
                        )
                    return str(earlier.id)
            if _count_waiting(connection) >= limit:
                raise QueueFull(f"{limit} tasks are waiting already; send it again in a few seconds")
            quota.check(connection, job)
            now = time.time()
            connection.execute(
                insert(tasks).values(
                    id=job.id, owner=job.owner, dialect=job.dialect, kind=job.kind, state="pending",
                    priority=job.priority, order_key=job.order_key, checkpoint=job.checkpoint, job=text,
                    kept=kept, process=self.process, submitted=now, idempotency_key=key,
                    fingerprint=fingerprint,
                )
            )  # fmt: skip
            return Task(job, submitted=now)

        try:
            added = await self.database.write(work)
        except IntegrityError:
            if key is not None:  # the same key at the same moment in another process
                added = await self.database.write(work)
            else:
                raise BadRequest(f"a task {job.id!r} exists already", field="id") from None
        if isinstance(added, str):
            task = await self.get(added)
            if task is None:
                raise EngineFailed(f"task {added} expired a moment ago; send the request again")
            return task
        return added

    async def preparing(self, task_id: str, *, max_delivery: int) -> bool:
        """Its inputs are about to be fetched. False, and the task failed, when that was begun
        ``max_delivery`` times without an end: it may be what ends the service."""

        def work(connection: Connection) -> int:
            found = connection.execute(
                update(tasks)
                .where(tasks.c.id == task_id, tasks.c.state == "pending")
                .values(preparations=tasks.c.preparations + 1, process=self.process)
                .returning(tasks.c.preparations)
            ).scalar_one_or_none()
            return 0 if found is None else int(found)

        begun = await self.database.write(work)
        if begun > max_delivery:
            await self.end(
                task_id,
                "failed",
                error=EngineFailed(
                    f"the service ended {begun - 1} times while it fetched the inputs; not tried again"
                ),
            )
        return 0 < begun <= max_delivery

    async def ready(self, task_id: str) -> None:
        """The task's inputs are there: from now on it can be claimed."""

        def work(connection: Connection) -> None:
            connection.execute(
                update(tasks)
                .where(tasks.c.id == task_id, tasks.c.state == "pending", tasks.c.kept)
                .values(ready=True, preparations=0, process=None)
            )
            connection.execute(
                update(tasks)
                .where(tasks.c.id == task_id, tasks.c.state == "pending", ~tasks.c.kept)
                .values(ready=True, preparations=0)
            )
            self.database.announce(connection, "work")

        await self.database.write(work)

    # -- running ------------------------------------------------------------------------------

    async def claim(self, *, loaded: str | None = None) -> Task | None:
        """Take the next task (:func:`next_in_turn`).

        ``loaded`` is the checkpoint the engine holds: a task for it may go before its turn, but
        each task is overtaken at most `OVERTAKES` times.
        """

        def work(connection: Connection) -> Row[Any] | None:
            first = connection.execute(next_in_turn(self.process)).one_or_none()
            if first is None:
                return None
            chosen = first
            if loaded is not None and first.checkpoint != loaded and first.overtaken < OVERTAKES:
                other = connection.execute(
                    next_in_turn(self.process).where(
                        tasks.c.checkpoint == loaded, tasks.c.priority == first.priority
                    )
                ).one_or_none()
                if other is not None:
                    chosen = other
                    connection.execute(
                        update(tasks)
                        .where(tasks.c.number == first.number)
                        .values(overtaken=tasks.c.overtaken + 1)
                    )
            _served(connection, chosen.owner)
            return connection.execute(
                update(tasks)
                .where(tasks.c.number == chosen.number, tasks.c.state == "pending")
                .values(
                    state="running",
                    attempts=tasks.c.attempts + 1,
                    scheduled=time.time(),
                    process=self.process,
                )
                .returning(tasks)
            ).one()

        for _ in range(CLAIM_TRIES):
            try:
                row = await self.database.write(work)
            except IntegrityError:  # another process started a job of this order key just now
                continue
            return await asyncio.to_thread(_task, row) if row is not None else None
        return None

    async def requeue(self, task_id: str) -> None:
        """The engine died under this task: it is pending again, and keeps its place by age."""

        def work(connection: Connection) -> None:
            moved = connection.execute(
                update(tasks)
                .where(tasks.c.id == task_id, tasks.c.state == "running", tasks.c.process == self.process)
                .values(state="pending", process=None, ready=True)
            ).rowcount
            if not moved:
                raise RuntimeError(f"task {task_id} is not running here and cannot be queued again")
            self.database.announce(connection, "work")

        await self.database.write(work)

    async def end(
        self,
        task_id: str,
        state: State,
        *,
        outcome: Outcome | None = None,
        error: ServiceError | None = None,
        engine_seconds: float = 0.0,
        only_waiting: bool = False,
    ) -> bool:
        """Record how a task ended. False when it had already ended (the first word stands), runs
        in another process, or, with ``only_waiting``, runs at all."""

        def work(connection: Connection) -> bool:
            return self._end(
                connection, task_id, state, outcome, error, engine_seconds, only_waiting=only_waiting
            )

        return await self.database.write(work)

    def _end(
        self,
        connection: Connection,
        task_id: str,
        state: State,
        outcome: Outcome | None,
        error: ServiceError | None,
        engine_seconds: float = 0.0,
        *,
        only_waiting: bool = False,
        of_process: str | None = None,
    ) -> bool:
        row = connection.execute(select(tasks).where(tasks.c.id == task_id).with_for_update()).one_or_none()
        if row is None or row.state in ENDED:
            return False
        if row.state == "running" and (only_waiting or row.process != (of_process or self.process)):
            return False
        if row.state in ("pending", "suspended") and state == "succeeded":
            raise RuntimeError(f"task {task_id} cannot go from {row.state} to succeeded")
        now = time.time()
        kept, body = codec.outcome_to_text(outcome) if outcome is not None else (None, None)
        connection.execute(
            update(tasks)
            .where(tasks.c.number == row.number)
            .values(
                state=state, ended=now, expires=now + self._retention(row.dialect), outcome=kept,
                reply_body=body, error=codec.error_to_text(error) if error else None,
                job=codec.without_pictures(row.job), process=None,
            )
        )  # fmt: skip
        job = codec.job_from_text(row.job)
        usage.record(connection, job, state, outcome, engine_seconds, now)
        if job.callback_url:
            connection.execute(insert(webhooks).values(task_id=task_id, url=job.callback_url, due=now))
            self.database.announce(connection, "webhook")
        self.database.announce(connection, "ended", task_id)
        self.database.announce(connection, "work")  # its order_key may have held others back
        return True

    # -- after a crash ------------------------------------------------------------------------

    async def recover(self, *, max_delivery: int) -> Recovered:
        """Take over what processes that are dead were doing.

        A task that ran is pending again, or failed once it was delivered ``max_delivery`` times:
        one that kills the service at each start is set aside. One whose caller was waiting on
        the dead process's connection is failed. A task whose inputs were being fetched comes
        back for it.
        """

        def seen(connection: Connection) -> list[str]:
            return list(
                connection.execute(
                    select(tasks.c.process)
                    .where(tasks.c.process.is_not(None), tasks.c.state.not_in(ENDED))
                    .distinct()
                ).scalars()
            )

        mentioned = await self.database.read(seen)
        others = [one for one in mentioned if one != self.process]
        if not others:
            return Recovered()
        presence = self.database.presence
        dead = await asyncio.to_thread(presence.dead, others) if presence is not None else set(others)
        if not dead:
            return Recovered()
        return await self.database.write(lambda connection: self._take_over(connection, dead, max_delivery))

    def _take_over(self, connection: Connection, dead: set[str], max_delivery: int) -> Recovered:
        rows = connection.execute(
            select(tasks)
            .where(tasks.c.process.in_(dead), tasks.c.state.not_in(ENDED))
            .order_by(tasks.c.number)
            .with_for_update(skip_locked=True)
        ).all()
        unprepared: list[Job] = []
        suspects: list[Job] = []
        ended: list[str] = []
        for row in rows:
            error: ServiceError | None = None
            if not row.kept:
                error = ShuttingDown("the service ended while this request waited; send it again")
            elif row.state == "running" and row.attempts >= max_delivery:
                error = EngineFailed(
                    "the service ended while it ran this task "
                    f"(delivered {row.attempts} times, not tried again)"
                )
            if error is not None:
                self._end(connection, row.id, "failed", None, error, of_process=row.process)
                ended.append(row.id)
            elif row.state == "running":
                connection.execute(
                    update(tasks)
                    .where(tasks.c.number == row.number)
                    .values(state="pending", ready=True, process=None)
                )
            else:
                connection.execute(
                    update(tasks).where(tasks.c.number == row.number).values(process=self.process)
                )
                (suspects if row.preparations else unprepared).append(codec.job_from_text(row.job))
        self.database.announce(connection, "work")
        return Recovered(tuple(unprepared), tuple(suspects), tuple(ended))

    # -- asking -------------------------------------------------------------------------------

    async def get(self, task_id: str) -> Task | None:
        def work(connection: Connection) -> Task | None:
            row = connection.execute(
                select(tasks).where(tasks.c.id == task_id, _unexpired(time.time()))
            ).one_or_none()
            return _task(row) if row is not None else None

        return await self.database.read(work)

    async def was_of(self, task_id: str, owner: str) -> bool:
        """Did this owner have such a task, which has expired?"""

        def work(connection: Connection) -> bool:
            gone = select(forgotten.c.task_id).where(
                forgotten.c.task_id == task_id, forgotten.c.owner == owner
            )
            going = select(tasks.c.id).where(
                tasks.c.id == task_id, tasks.c.owner == owner, ~_unexpired(time.time())
            )
            return any(connection.execute(one).first() is not None for one in (gone, going))

        return await self.database.read(work)

    async def find(
        self,
        *,
        owner: str | None = None,
        dialect: str | None = None,
        states: Sequence[State] = (),
        since: float | None = None,
        until: float | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[Task]:
        """Tasks, the newest first; ``since`` and ``until`` are times of submission."""
        wanted = select(tasks).where(_unexpired(time.time())).order_by(tasks.c.number.desc())
        wanted = wanted.limit(limit).offset(offset)
        for column, value in ((tasks.c.owner, owner), (tasks.c.dialect, dialect)):
            if value is not None:
                wanted = wanted.where(column == value)
        if states:
            wanted = wanted.where(tasks.c.state.in_(states))
        if since is not None:
            wanted = wanted.where(tasks.c.submitted >= since)
        if until is not None:
            wanted = wanted.where(tasks.c.submitted <= until)
        return await self.database.read(lambda connection: [_task(row) for row in connection.execute(wanted)])

    async def waiting(self) -> int:
        """How many tasks are pending."""
        return await self.database.read(_count_waiting)

    async def announce(self, topic: str, told: str = "") -> None:
        await self.database.write(lambda connection: self.database.announce(connection, topic, told))

    async def work(self) -> None:
        """Return when a claim may have become possible since the last call."""
        if not self._listening:
            self._listening = True
            self.database.listen("work", lambda _: self._work.set())
            return  # something may have been announced before
        await self._work.wait()
        self._work.clear()

    # -- retention ----------------------------------------------------------------------------

    async def expired(self, *, limit: int = 100) -> list[Task]:
        """Tasks whose time is over, the oldest first. They stay until :meth:`forget`."""

        def work(connection: Connection) -> list[Task]:
            wanted = select(tasks).where(tasks.c.expires < time.time()).order_by(tasks.c.expires).limit(limit)
            return [_task(row) for row in connection.execute(wanted)]

        return await self.database.read(work)

    async def forget(self, task_ids: Sequence[str]) -> None:
        """Remove these tasks; that they were stays known for `REMEMBERED_SECONDS`."""
        now = time.time()

        def work(connection: Connection) -> None:
            rows = connection.execute(select(tasks.c.id, tasks.c.owner).where(tasks.c.id.in_(task_ids))).all()
            connection.execute(delete(forgotten).where(forgotten.c.until < now))
            for row in rows:
                connection.execute(
                    insert(forgotten).values(task_id=row.id, owner=row.owner, until=now + REMEMBERED_SECONDS)
                )
            connection.execute(delete(tasks).where(tasks.c.id.in_(task_ids)))

        await self.database.write(work)


def _unexpired(now: float) -> ColumnElement[bool]:
    return or_(tasks.c.expires.is_(None), tasks.c.expires > now)


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


def _count_waiting(connection: Connection) -> int:
    return connection.execute(
        select(func.count()).select_from(tasks).where(tasks.c.state == "pending")
    ).scalar_one()


def _task(row: Row[Any]) -> Task:
    return Task(
        job=codec.job_from_text(row.job),
        state=row.state,
        attempts=row.attempts,
        submitted=row.submitted,
        scheduled=row.scheduled,
        ended=row.ended,
        outcome=codec.outcome_from_text(row.outcome, row.reply_body) if row.outcome else None,
        error=codec.error_from_text(row.error) if row.error else None,
        process=row.process,
    )
