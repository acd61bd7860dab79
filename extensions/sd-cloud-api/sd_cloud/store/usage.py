"""What each task cost: the rows that a bill is split by."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import datetime, timezone
from io import StringIO
from typing import Any

from sqlalchemy import Connection, func, insert, select

from sd_cloud.job import Job, Outcome
from sd_cloud.store.base import State
from sd_cloud.store.schema import usage

COLUMNS = (
    "ended", "task_id", "owner", "dialect", "kind", "checkpoint", "state", "pictures",
    "megapixel_steps", "engine_seconds",
)  # fmt: skip


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


def as_csv(connection: Connection, *, since: float = 0.0, until: float | None = None) -> Iterator[str]:
    """Usage rows as CSV lines, header first, oldest first; times in UTC."""
    yield _line(COLUMNS)
    wanted = select(usage).where(usage.c.ended >= since).order_by(usage.c.number)
    if until is not None:
        wanted = wanted.where(usage.c.ended < until)
    for row in connection.execute(wanted):
        values = row._mapping
        yield _line([_text(name, values[name]) for name in COLUMNS])


def totals(connection: Connection, *, since: float = 0.0) -> list[dict[str, Any]]:
    """Sums per owner."""
    sums = [func.sum(usage.c[name]).label(name) for name in ("pictures", "megapixel_steps", "engine_seconds")]
    wanted = select(usage.c.owner, func.count().label("tasks"), *sums).where(usage.c.ended >= since)
    return [
        dict(row._mapping) for row in connection.execute(wanted.group_by(usage.c.owner).order_by("owner"))
    ]


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
