"""Who is still to be told that a task is over. Rows are made in the transaction that ends the task."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, update

from sd_cloud.store.database import Database
from sd_cloud.store.schema import webhooks


@dataclass(frozen=True)
class Due:
    """A call to be made; ``attempt`` is 1 the first time."""

    task_id: str
    url: str
    attempt: int


class WebhookTable:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, limit: int, *, lease_seconds: float) -> list[Due]:
        """Calls whose time has come. Whoever takes one and dies has it for ``lease_seconds``."""

        def work(connection: Connection) -> list[Due]:
            now = time.time()
            rows = connection.execute(
                select(webhooks)
                .where(webhooks.c.state == "waiting", webhooks.c.due <= now)
                .order_by(webhooks.c.due)
                .limit(limit)
                .with_for_update(skip_locked=True)
            ).all()
            for row in rows:
                connection.execute(
                    update(webhooks)
                    .where(webhooks.c.task_id == row.task_id)
                    .values(attempts=row.attempts + 1, due=now + lease_seconds)
                )
            return [Due(row.task_id, row.url, row.attempts + 1) for row in rows]

        return await self._database.write(work)

    async def settle(self, task_id: str, state: str, error: str | None = None) -> None:
        """``state``: delivered, or failed for good."""
        await self._set(task_id, state=state, error=error)

    async def try_again(self, task_id: str, seconds: float, error: str) -> None:
        await self._set(task_id, due=time.time() + seconds, error=error)

    async def next_due(self) -> float | None:
        """When the next call is due, in seconds since the epoch; None when none waits."""
        wanted = select(func.min(webhooks.c.due)).where(webhooks.c.state == "waiting")
        return await self._database.read(lambda c: c.execute(wanted).scalar_one())

    async def of(self, task_id: str) -> dict[str, object] | None:
        """What became of a task's call so far."""

        def work(connection: Connection) -> dict[str, object] | None:
            row = connection.execute(select(webhooks).where(webhooks.c.task_id == task_id)).one_or_none()
            if row is None:
                return None
            return {"state": row.state, "attempts": row.attempts, "error": row.error}

        return await self._database.read(work)

    async def _set(self, task_id: str, **values: object) -> None:
        await self._database.write(
            lambda c: c.execute(update(webhooks).where(webhooks.c.task_id == task_id).values(**values))
        )
