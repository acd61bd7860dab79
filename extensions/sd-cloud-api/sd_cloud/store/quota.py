"""Limits of one user: tasks that wait or run, pictures per day."""

from __future__ import annotations

import time

from sqlalchemy import Connection, func, select

from sd_cloud.errors import QuotaExceeded
from sd_cloud.job import Job
from sd_cloud.store.schema import tasks, usage, users


def check(connection: Connection, job: Job) -> None:
    """Raises QuotaExceeded when this job is one more than its owner may have. An owner who is no
    user (the operator) has no limits. A day begins at 00:00 UTC."""
    user = connection.execute(
        select(users.c.waiting_limit, users.c.daily_pictures).where(users.c.name == job.owner)
    ).one_or_none()
    if user is None:
        return
    if user.waiting_limit is not None:
        unfinished = connection.execute(
            select(func.count())
            .select_from(tasks)
            .where(tasks.c.owner == job.owner, tasks.c.state.in_(("pending", "running")))
        ).scalar_one()
        if unfinished >= user.waiting_limit:
            raise QuotaExceeded(
                f"{job.owner} has {unfinished} unfinished tasks and may have {user.waiting_limit}; "
                "wait for one to end"
            )
    if user.daily_pictures is not None:
        midnight = time.time() // 86400 * 86400
        made = connection.execute(
            select(func.coalesce(func.sum(usage.c.pictures), 0)).where(
                usage.c.owner == job.owner, usage.c.ended >= midnight
            )
        ).scalar_one()
        wanted = pictures_asked_for(job)
        if made + wanted > user.daily_pictures:
            raise QuotaExceeded(
                f"{job.owner} has made {made} of {user.daily_pictures} pictures today and asks for {wanted}; "
                "the next day begins at 00:00 UTC"
            )


def pictures_asked_for(job: Job) -> int:
    """Pictures without grids."""
    if job.kind in ("txt2img", "img2img"):
        counts = [job.payload.get(name) for name in ("batch_size", "n_iter")]
        numbers = [one if isinstance(one, int) and one > 0 else 1 for one in counts]
        return numbers[0] * numbers[1]
    return 1 if job.kind == "extras" else 0
