"""Tasks in SQL: recorded, claimed in order, ended once, kept for a while. SQLite or PostgreSQL.

Which task is next is one query, in :mod:`sd_cloud.store.turn`. `MOVES` in :mod:`sd_cloud.store.base` says
which way a task may go; a task is moved only by an UPDATE that names the state it comes from.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    delete,
    func,
    insert,
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
    StoreUnavailable,
)
from sd_cloud.job import Job, Outcome, Progress
from sd_cloud.settings import Settings
from sd_cloud.store import codec, quota, turn
from sd_cloud.store.base import ENDED, Recovered, State, Task
from sd_cloud.store.database import Database, open_database
from sd_cloud.store.ending import Ending
from sd_cloud.store.rows import task_of, unexpired
from sd_cloud.store.schema import forgotten, tasks, webhooks

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
        self._ending = Ending(database, retention)
        self._work = asyncio.Event()
        self._listening = False

    @property
    def process(self) -> str:
        return self.database.process

    # -- taking -------------------------------------------------------------------------------

    async def add(
        self,
        job: Job,
        *,
        limit: int,
        kept: bool = True,
        idempotency: tuple[str, str] | None = None,
        beside: Callable[[Connection], object] | None = None,
    ) -> Task:
        """Record a job as pending.

        ``kept``: its result can be fetched after a restart; a job that is not is failed when the
        process dies. ``idempotency``: the caller's key and a fingerprint of the request; when that
        owner used the key before, the answer is the task it made then (its id is another one).
        ``beside``: what else belongs into the transaction that records it.
        Raises QueueFull when ``limit`` tasks are waiting, QuotaExceeded, IdempotencyConflict.
        """
        text = await asyncio.to_thread(codec.job_to_text, job)
        pictures = await asyncio.to_thread(quota.pictures_asked_for, job)
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
            quota.check(connection, job.owner, pictures)
            now = time.time()
            connection.execute(
                insert(tasks).values(
                    id=job.id, owner=job.owner, dialect=job.dialect, kind=job.kind, state="pending",
                    priority=job.priority, order_key=job.order_key, checkpoint=job.checkpoint, job=text,
                    kept=kept, process=self.process, submitted=now, idempotency_key=key,
                    fingerprint=fingerprint, pictures=pictures,
                )
            )  # fmt: skip
            if beside is not None:
                beside(connection)
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
        """Take the next task (see :mod:`sd_cloud.store.turn`).

        ``loaded`` is the checkpoint the engine holds: a task for it may go before its turn, but
        each task is overtaken at most `OVERTAKES` times.
        """

        def work(connection: Connection) -> Row[Any] | None:
            taken = turn.take(connection, self.process, loaded)
            if taken is not None:
                self.database.announce(connection, "progress", taken.id)
            return taken

        for _ in range(CLAIM_TRIES):
            try:
                row = await self.database.write(work)
            except IntegrityError:  # another process started a job of this order key just now
                continue
            return await asyncio.to_thread(task_of, row) if row is not None else None
        return None

    async def note_progress(self, task_id: str, progress: Progress) -> None:
        """How far a task that runs here is, for those who ask another process."""
        text, preview = await asyncio.to_thread(codec.progress_to, progress)

        def work(connection: Connection) -> None:
            connection.execute(
                update(tasks)
                .where(tasks.c.id == task_id, tasks.c.state == "running", tasks.c.process == self.process)
                .values(progress=text, preview=preview)
            )
            self.database.announce(connection, "progress", task_id)

        await self.database.write(work)

    async def ask_cancel(self, task_id: str) -> bool:
        """Have whichever process runs the task stop it; also after a crash of that process. False when none
        runs it."""

        def work(connection: Connection) -> bool:
            asked = connection.execute(
                update(tasks)
                .where(tasks.c.id == task_id, tasks.c.state == "running")
                .values(cancel_asked=True)
            ).rowcount
            if asked:
                self.database.announce(connection, "cancel", task_id)
            return bool(asked)

        return await self.database.write(work)

    async def to_cancel(self) -> list[str]:
        """The tasks running here that somebody wants stopped."""
        wanted = select(tasks.c.id).where(
            tasks.c.state == "running", tasks.c.process == self.process, tasks.c.cancel_asked
        )
        return await self.database.read(lambda c: list(c.execute(wanted).scalars()))

    async def requeue(self, task_id: str) -> None:
        """The engine died under this task: it is pending again, and keeps its place by age."""

        def work(connection: Connection) -> None:
            moved = connection.execute(
                update(tasks)
                .where(tasks.c.id == task_id, tasks.c.state == "running", tasks.c.process == self.process)
                .values(state="pending", process=None, ready=True, progress=None, preview=None)
            ).rowcount
            if not moved:
                raise RuntimeError(f"task {task_id} is not running here and cannot be queued again")
            self.database.announce(connection, "progress", task_id)
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
            return self._ending.end(
                connection, task_id, state, outcome, error, engine_seconds, only_waiting=only_waiting
            )

        return await self.database.write(work)

    # -- after a crash ------------------------------------------------------------------------

    async def recover(self, *, max_delivery: int) -> Recovered:
        """Take over what processes that are dead were doing.

        A task that ran is pending again, or failed once it was delivered ``max_delivery`` times:
        one that kills the service at each start is set aside. One whose caller was waiting on
        the dead process's connection is failed. A task whose inputs were being fetched comes
        back for it, and what ran beside it waits until they are fetched: it is not blamed twice.
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
        return await self.database.write(
            lambda connection: self._ending.take_over(connection, dead, max_delivery)
        )

    # -- asking -------------------------------------------------------------------------------

    async def get(self, task_id: str) -> Task | None:
        def work(connection: Connection) -> Task | None:
            row = connection.execute(
                select(tasks).where(tasks.c.id == task_id, unexpired(time.time()))
            ).one_or_none()
            return task_of(row) if row is not None else None

        return await self.database.read(work)

    async def was_of(self, task_id: str, owner: str) -> bool:
        """Did this owner have such a task, which has expired?"""

        def work(connection: Connection) -> bool:
            gone = select(forgotten.c.task_id).where(
                forgotten.c.task_id == task_id, forgotten.c.owner == owner
            )
            going = select(tasks.c.id).where(
                tasks.c.id == task_id, tasks.c.owner == owner, ~unexpired(time.time())
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
        wanted = select(tasks).where(unexpired(time.time())).order_by(tasks.c.number.desc())
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
        return await self.database.read(
            lambda connection: [task_of(row) for row in connection.execute(wanted)]
        )

    async def waiting(self) -> int:
        """How many tasks are pending."""
        return await self.database.read(_count_waiting)

    async def trouble(self) -> str | None:
        """Why nothing can be written; after a failure it is tried again."""
        if self.database.trouble is not None:
            last = select(func.max(tasks.c.number)).scalar_subquery()
            with contextlib.suppress(StoreUnavailable):  # it says so in the database's trouble
                await self.database.write(
                    lambda c: c.execute(
                        update(tasks).where(tasks.c.number == last).values(ready=tasks.c.ready)
                    )
                )
        return self.database.trouble

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
            now = time.time()
            wanted = select(tasks).where(
                tasks.c.expires < now, func.coalesce(tasks.c.cleaned_after, 0.0) < now
            )
            wanted = wanted.order_by(tasks.c.expires).limit(limit)
            return [task_of(row) for row in connection.execute(wanted)]

        return await self.database.read(work)

    async def postpone(self, task_ids: Sequence[str], seconds: float) -> None:
        """Leave these expired tasks for so long."""
        until = time.time() + seconds
        if task_ids:
            await self.database.write(
                lambda c: c.execute(update(tasks).where(tasks.c.id.in_(task_ids)).values(cleaned_after=until))
            )

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
            connection.execute(delete(webhooks).where(webhooks.c.task_id.in_(task_ids)))
            connection.execute(delete(tasks).where(tasks.c.id.in_(task_ids)))

        await self.database.write(work)


def _count_waiting(connection: Connection) -> int:
    return connection.execute(
        select(func.count()).select_from(tasks).where(tasks.c.state == "pending")
    ).scalar_one()
