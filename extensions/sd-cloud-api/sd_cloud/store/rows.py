"""A row of the tasks as a `Task`, and which rows still count."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Row, or_

from sd_cloud.store import codec
from sd_cloud.store.base import Task
from sd_cloud.store.schema import tasks


def task_of(row: Row[Any]) -> Task:
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
        progress=codec.progress_from(row.progress, row.preview) if row.progress else None,
    )


def unexpired(now: float) -> ColumnElement[bool]:
    return or_(tasks.c.expires.is_(None), tasks.c.expires > now)
