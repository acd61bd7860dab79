"""A full queue and a user's limits are refused in every dialect, with when to come again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sd_cloud.job import Job
from sd_cloud.store.users import UserTable
from tests.dialects.test_idempotency import WAYS
from tests.dialects.test_pages import ADMIN, BOB, Site, job, site_of


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_of(tmp_path) as made:
        yield made


async def asked(site: Site, way: str) -> httpx.Response:
    path, body, headers = WAYS[way]
    return await site.ask("POST", path, BOB, json=body, headers=headers)


def endless() -> Job:
    return job("bob", steps=100_000, step_seconds=0.01)


@pytest.mark.parametrize("way", WAYS)
async def test_a_full_queue_is_a_429_with_retry_after_and_loses_nothing(site: Site, way: str) -> None:
    running = await site.service.submit(endless())
    while site.service.running is None:
        await site.service.queue_length()
    waiting = await site.service.submit(job("bob"))
    site.service.queue_limit = 1
    refused = await asked(site, way)
    assert refused.status_code == 429 and int(refused.headers["Retry-After"]) > 0
    assert "waiting already" in refused.text
    site.service.queue_limit = 100
    await site.service.cancel(running)
    await site.service.result(waiting)
    assert (await asked(site, way)).status_code == 200


@pytest.mark.parametrize("way", WAYS)
async def test_a_days_pictures_are_a_429_until_midnight(site: Site, way: str) -> None:
    users: Any = UserTable(site.service.store.database)
    await users.add("bob", role="user", daily_pictures=0)
    refused = await asked(site, way)
    assert refused.status_code == 429 and "0 of 0 pictures today" in refused.text
    assert 0 < int(refused.headers["Retry-After"]) <= 86400
    assert await site.service.store.find() == []


@pytest.mark.parametrize("way", WAYS)
async def test_unfinished_tasks_are_limited(site: Site, way: str) -> None:
    users: Any = UserTable(site.service.store.database)
    await users.add("bob", role="user", waiting_limit=1)
    running = await site.service.submit(endless())
    refused = await asked(site, way)
    assert refused.status_code == 429 and "unfinished tasks" in refused.text
    await site.service.cancel(running)


async def test_usage_is_exported_as_csv_by_day_and_user(site: Site) -> None:
    for owner in ("bob", "eve"):
        await site.service.run(job(owner))
    whole = await site.ask("GET", "/sd-cloud/v1/usage", ADMIN)
    assert whole.headers["content-type"].startswith("text/csv") and len(whole.text.splitlines()) == 3
    bobs = await site.ask("GET", "/sd-cloud/v1/usage?user=bob&from=2024-01-01", ADMIN)
    [line] = bobs.text.splitlines()[1:]
    assert ",bob," in line
    assert len((await site.ask("GET", "/sd-cloud/v1/usage?to=2024-01-01", ADMIN)).text.splitlines()) == 1
    wrong = await site.ask("GET", "/sd-cloud/v1/usage?from=yesterday", ADMIN)
    assert wrong.status_code == 422 and wrong.json()["detail"].startswith("from: ")
    assert (await site.ask("GET", "/sd-cloud/v1/usage", BOB)).status_code == 403
