from __future__ import annotations

import base64
import csv
import io
import json
import time
from typing import Any

import pytest

from sd_cloud.errors import EngineFailed, QuotaExceeded
from sd_cloud.job import Job, Outcome, Picture, Target
from sd_cloud.store import usage
from sd_cloud.store.database import Database
from sd_cloud.store.quota import pictures_asked_for
from sd_cloud.store.sql import SqlStore
from sd_cloud.store.users import UserTable

INFO = {"width": 512, "height": 1000, "steps": 20}


def job(owner: str = "anna", **payload: Any) -> Job:
    return Job("txt2img", {"prompt": "a cat", **payload}, owner=owner, target=Target("task"))


async def ended(store: SqlStore, asked: Job, pictures: int, seconds: float = 1.5) -> None:
    await store.add(asked, limit=100)
    await store.ready(asked.id)
    while (task := await store.claim()) is not None and task.id != asked.id:
        pass
    outcome = Outcome(tuple(Picture(None, seed=i) for i in range(pictures)), INFO)
    await store.end(asked.id, "succeeded", outcome=outcome, engine_seconds=seconds)


async def exported(database: Database, **which: Any) -> list[dict[str, str]]:
    text = "".join([lines async for lines in usage.as_csv(database, **which)])
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def store(database: Database) -> SqlStore:
    return SqlStore(database)


async def test_each_task_an_engine_worked_on_is_a_line_with_what_it_cost(
    store: SqlStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "ROWS_AT_ONCE", 2)
    asked = [job(), job("=cmd()"), job(), job()]
    for count, one in enumerate(asked[:3], start=1):
        await ended(store, one, count)
    await store.add(asked[3], limit=100)
    await store.end(asked[3].id, "cancelled")  # no engine had it
    failed = job()
    await store.add(failed, limit=100)
    await store.end(failed.id, "failed", error=EngineFailed("no"), engine_seconds=2)
    rows = await exported(database)
    assert [row["task_id"] for row in rows] == [*(one.id for one in asked[:3]), failed.id]
    assert tuple(rows[0]) == usage.COLUMNS
    assert [row["pictures"] for row in rows] == ["1", "2", "3", "0"]
    assert rows[2]["megapixel_steps"] == "30.720" and rows[2]["engine_seconds"] == "1.500"
    assert rows[1]["owner"] == "'=cmd()", "no spreadsheet takes it for a formula"
    assert len(await exported(database, owner="anna")) == 3
    assert await exported(database, since=time.time() + 1) == [] == await exported(database, until=1.0)


async def test_a_days_limit_counts_what_was_made_and_what_is_being_made(
    store: SqlStore, database: Database
) -> None:
    await UserTable(database).add("anna", role="user", daily_pictures=5)
    await ended(store, job(), 2)
    await store.add(job(n_iter=2), limit=100)
    with pytest.raises(QuotaExceeded, match="made 2 of 5 pictures today and 2 are being made") as refused:
        await store.add(job(batch_size=2), limit=100)
    assert 0 < (refused.value.retry_after_seconds or 0) <= 86400
    await store.add(job(), limit=100)
    await store.add(job("ben", n_iter=100), limit=100)


async def test_a_limit_of_unfinished_tasks(store: SqlStore, database: Database) -> None:
    await UserTable(database).add("anna", role="user", waiting_limit=2)
    first = job()
    for one in (first, job()):
        await store.add(one, limit=100)
    with pytest.raises(QuotaExceeded, match="2 unfinished tasks"):
        await store.add(job(), limit=100)
    await store.end(first.id, "cancelled")
    await store.add(job(), limit=100)


@pytest.mark.parametrize(
    ("body", "count"),
    [({"n_iter": 3, "batch_size": 2}, 6), ({}, 1), ([], 0), ({"n_iter": "x"}, 1), ({"n_iter": -5}, 1)],
)
def test_the_pictures_of_a_replayed_native_request_are_counted_from_its_body(body: Any, count: int) -> None:
    encoded = base64.b64encode(json.dumps(body).encode()).decode()
    assert pictures_asked_for(Job("call", {"path": "/sdapi/v1/txt2img", "body": encoded})) == count
    assert pictures_asked_for(Job("call", {"path": "/sdapi/v1/png-info", "body": encoded})) == 0
