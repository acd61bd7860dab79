"""What each task cost: the rows that a bill is split by."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timezone
from functools import partial
from io import StringIO
from typing import Any

from sqlalchemy import Connection, Row, Select, insert, select

from sd_cloud.job import Job, Outcome
from sd_cloud.store.base import State
from sd_cloud.store.database import Database
from sd_cloud.store.schema import usage

COLUMNS = (
    "ended", "task_id", "owner", "dialect", "kind", "checkpoint", "state", "pictures",
    "megapixel_steps", "engine_seconds",
)  # fmt: skip
ROWS_AT_ONCE = 1000


def record(
    connection: Connection,
    job: Job,
    state: State,
    outcome: Outcome | None,
    engine_seconds: float,
    ended: float,
) -> None:
    """One row per task that an engine worked on."""
    if outcome is None and not engine_seconds:
        return
    pictures = len([p for p in outcome.of_role("image") if p.error is None]) if outcome else 0
    connection.execute(
        insert(usage).values(
            task_id=job.id, owner=job.owner, dialect=job.dialect, kind=job.kind, checkpoint=job.checkpoint,
            state=state, pictures=pictures, megapixel_steps=pictures * megapixel_steps_each(job, outcome),
            engine_seconds=engine_seconds, ended=ended,
        )
    )  # fmt: skip


def megapixel_steps_each(job: Job, outcome: Outcome | None) -> float:
    """Width x height / 10^6 x sampling steps of one picture: what the time goes with."""
    info = outcome.info if outcome else {}

    def number(name: str) -> float:
        value = info.get(name, job.payload.get(name))
        return float(value) if isinstance(value, int | float) else 0.0

    return number("width") * number("height") / 1e6 * number("steps")


async def as_csv(
    database: Database, *, since: float = 0.0, until: float | None = None, owner: str | None = None
) -> AsyncIterator[str]:
    """Usage rows as CSV, header first, oldest first, so many lines at a time; times in UTC.

    ``since`` and ``until`` (not itself in it): when the task ended, in seconds since the epoch.
    """
    yield _line(COLUMNS)
    wanted = select(usage).where(usage.c.ended >= since).order_by(usage.c.number).limit(ROWS_AT_ONCE)
    if until is not None:
        wanted = wanted.where(usage.c.ended < until)
    if owner is not None:
        wanted = wanted.where(usage.c.owner == owner)
    last = 0
    while rows := await database.read(partial(_after, wanted=wanted, number=last)):
        yield "".join(_line([_text(name, row._mapping[name]) for name in COLUMNS]) for row in rows)
        last = rows[-1].number


def _after(connection: Connection, wanted: Select[Any], number: int) -> Sequence[Row[Any]]:
    return connection.execute(wanted.where(usage.c.number > number)).all()


def _text(name: str, value: Any) -> str:
    if name == "ended":
        return datetime.fromtimestamp(value, timezone.utc).isoformat(timespec="seconds")
    if isinstance(value, float):
        return f"{value:.3f}"
    text = "" if value is None else str(value)
    # A cell that a spreadsheet would take for a formula is shown as text.
    return "'" + text if text.startswith(("=", "+", "-", "@")) else text


def _line(values: Any) -> str:
    line = StringIO()
    csv.writer(line).writerow(values)
    return line.getvalue()
