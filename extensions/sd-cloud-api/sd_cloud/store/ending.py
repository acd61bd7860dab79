"""A task ends once; a dead process's tasks begin again or end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from sd_cloud.errors import Cancelled, EngineFailed, ServiceError, ShuttingDown
from sd_cloud.job import Job, Outcome
from sd_cloud.store import codec, usage
from sd_cloud.store.base import ENDED, Recovered, State
from sd_cloud.store.database import Database
from sd_cloud.store.schema import tasks, webhooks


class Ending:
    """Ends tasks within a transaction. ``retention``: seconds that a dialect's tasks are kept."""

    def __init__(self, database: Database, retention: Callable[[str], float]) -> None:
        self._database = database
        self._retention = retention

    def end(
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
        if row.state == "running" and (only_waiting or row.process != (of_process or self._database.process)):
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
                job=codec.without_pictures(row.job), process=None, progress=None, preview=None,
                # It was not the request's fault: sent again with the same key it is a new one.
                idempotency_key=None if isinstance(error, ShuttingDown) else row.idempotency_key,
            )
        )  # fmt: skip
        job = codec.job_from_text(row.job)
        usage.record(connection, job, state, outcome, engine_seconds, now)
        if job.callback_url:
            connection.execute(insert(webhooks).values(task_id=task_id, url=job.callback_url, due=now))
            self._database.announce(connection, "webhook")
        self._database.announce(connection, "ended", task_id)
        self._database.announce(connection, "work")  # its order_key may have held others back
        return True

    def take_over(self, connection: Connection, dead: set[str], max_delivery: int) -> Recovered:
        """See :meth:`SqlStore.recover`."""
        rows = connection.execute(
            select(tasks)
            .where(tasks.c.process.in_(dead), tasks.c.state.not_in(ENDED))
            .order_by(tasks.c.number)
            .with_for_update(skip_locked=True)
        ).all()
        unprepared: list[Job] = []
        suspects: list[Job] = []
        ended: list[str] = []
        delivered: list[Row[Any]] = []
        for row in rows:
            error: ServiceError | None = None
            if not row.kept:
                error = ShuttingDown("the service ended while this request waited; send it again")
            elif row.cancel_asked:
                error = Cancelled("the task was cancelled while it ran")
            elif row.state == "running" and row.attempts >= max_delivery:
                error = EngineFailed(
                    "the service ended while it ran this task "
                    f"(delivered {row.attempts} times, not tried again)"
                )
            if error is not None:
                state: State = "cancelled" if isinstance(error, Cancelled) else "failed"
                self.end(connection, row.id, state, None, error, of_process=row.process)
                ended.append(row.id)
            elif row.attempts:
                delivered.append(row)
            else:
                (suspects if row.preparations else unprepared).append(codec.job_from_text(row.job))
                self._taken_over(connection, row, ready=False)
        for row in delivered:
            self._taken_over(connection, row, ready=not suspects)
        held = tuple(row.id for row in delivered) if suspects else ()
        self._database.announce(connection, "work")
        return Recovered(tuple(unprepared), tuple(suspects), held, tuple(ended))

    def _taken_over(self, connection: Connection, row: Row[Any], *, ready: bool) -> None:
        """The task waits again: to be claimed (``ready``), or for this process to make it so."""
        connection.execute(
            update(tasks)
            .where(tasks.c.number == row.number)
            .values(
                state="pending" if row.state == "running" else row.state,
                ready=ready,
                process=None if ready else self._database.process,
                progress=None,
                preview=None,
            )
        )
