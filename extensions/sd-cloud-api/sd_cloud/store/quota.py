"""Limits of one user: tasks that wait or run, pictures per day."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, func, select

from sd_cloud.errors import QuotaExceeded
from sd_cloud.job import LOOKING, Job
from sd_cloud.store.schema import tasks, usage, users

DAY_SECONDS = 86400
#: The native routes that make pictures, by the end of their path.
MAKING = ("/txt2img", "/img2img")


def check(connection: Connection, owner: str, wanted: int) -> None:
    """Raises QuotaExceeded when a task of ``wanted`` pictures is more than its owner may have.

    An owner who is no user (the operator) has no limits. A day begins at 00:00 UTC; the pictures that
    unfinished tasks ask for count as made.
    """
    user = connection.execute(
        select(users.c.waiting_limit, users.c.daily_pictures).where(users.c.name == owner).with_for_update()
    ).one_or_none()
    if user is None or (user.waiting_limit is None and user.daily_pictures is None):
        return
    unfinished, pictures = connection.execute(
        select(func.count(), func.coalesce(func.sum(tasks.c.pictures), 0)).where(
            tasks.c.owner == owner, tasks.c.state.in_(("pending", "running"))
        )
    ).one()
    if user.waiting_limit is not None and unfinished >= user.waiting_limit:
        raise QuotaExceeded(
            f"{owner} has {unfinished} unfinished tasks and may have {user.waiting_limit}; "
            "wait for one to end"
        )
    if user.daily_pictures is not None and wanted:
        now = time.time()
        midnight = now // DAY_SECONDS * DAY_SECONDS
        made = connection.execute(
            select(func.coalesce(func.sum(usage.c.pictures), 0)).where(
                usage.c.owner == owner, usage.c.ended >= midnight
            )
        ).scalar_one()
        if made + pictures + wanted > user.daily_pictures:
            coming = f" and {pictures} are being made" if pictures else ""
            raise QuotaExceeded(
                f"{owner} has made {made} of {user.daily_pictures} pictures today{coming}, and asks for "
                f"{wanted}; the next day begins at 00:00 UTC",
                retry_after_seconds=int(midnight + DAY_SECONDS - now) + 1,
            )


def pictures_asked_for(job: Job) -> int:
    """Pictures without grids; of a call, as far as its body says it in the native words."""
    if job.kind == "call":
        if not str(job.payload.get("path", "")).rstrip("/").endswith(MAKING):
            return 0
        try:
            body = json.loads(base64.b64decode(job.payload["body"]))
        except (ValueError, RecursionError):
            return 0  # its route refuses it
        return _count(body) if isinstance(body, dict) else 0
    if job.kind in LOOKING:
        return 0
    return 1 if job.kind == "extras" else _count(job.payload)


def _count(payload: Mapping[str, Any]) -> int:
    numbers = [payload.get(name) for name in ("batch_size", "n_iter")]
    batch, rounds = (one if isinstance(one, int) and one > 0 else 1 for one in numbers)
    return min(batch * rounds, 10**9)
