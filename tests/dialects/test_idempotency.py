"""The same ``Idempotency-Key`` and request again is the same task, whatever dialect it is sent in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sd_cloud.access import Caller
from sd_cloud.errors import ShuttingDown
from sd_cloud.store.base import Task
from sd_cloud.store.sql import SqlStore
from tests.dialects.test_pages import ADMIN, BOB, Site, job, site_of
from tests.store.conftest import Open

KEY = {"Idempotency-Key": "order 66"}
SMALL: dict[str, Any] = {"prompt": "a cat", "width": 64, "height": 64, "seed": -1}
#: Each dialect's way to ask for a task: path, body, headers.
WAYS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "eas": ("/sdapi/v1/txt2img", {**SMALL, "alwayson_scripts": {"uid": "7"}}, {}),
    "task api": ("/txt2img", {**SMALL, "stable_diffusion_model": "first"}, {"Request-Type": "async"}),
    "task api, waiting": ("/txt2img", {**SMALL, "stable_diffusion_model": "first"}, {}),
    "task flag": ("/sdapi/v1/txt2img", SMALL, {"Task-Flag": "true", "Request-Type": "async"}),
    "dashscope": (
        "/api/v1/services/aigc/text2image/image-synthesis",
        {"model": "stable-diffusion-xl", "input": {"prompt": "a cat", "negative_prompt": "a dog"}},
        {"X-DashScope-Async": "enable"},
    ),
    "queue": ("/api/predict/sd_async/sdapi/v1/txt2img", SMALL, {}),
}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_of(tmp_path) as made:
        yield made


async def asked(site: Site, way: str, caller: Caller = BOB, **changes: Any) -> Any:
    path, body, headers = WAYS[way]
    return await site.ask("POST", path, caller, json={**body, **changes}, headers={**headers, **KEY})


async def tasks(site: Site, count: int) -> list[Task]:
    found = await site.service.store.find()
    assert len(found) == count
    for one in found:
        await site.service.result(one.id)
    return found


@pytest.mark.parametrize("way", WAYS)
async def test_the_same_request_again_is_the_same_task_also_once_it_is_over(site: Site, way: str) -> None:
    first = await asked(site, way)
    assert first.status_code == 200, first.text
    await tasks(site, 1)
    again = await asked(site, way)
    assert again.status_code == 200, again.text
    await tasks(site, 1)
    said, repeated = first.json(), again.json()
    for one in (said, repeated):  # what belongs to one answer
        if isinstance(one, dict):
            one.pop("request_id", None)
            one.pop("ossUrl", None)
            one.get("parameters", {}).pop("total_time", None)
            one.get("parameters", {}).pop("image_links", None)
    assert said == repeated
    for header in ("taskid", "x-eas-queueservice-request-id"):
        assert first.headers.get(header) == again.headers.get(header)


@pytest.mark.parametrize("way", WAYS)
async def test_another_request_with_the_key_is_a_conflict_and_another_owner_has_keys_of_their_own(
    site: Site, way: str
) -> None:
    await asked(site, way)
    other = (
        {"input": {"prompt": "a dog", "negative_prompt": "a cat"}}
        if way == "dashscope"
        else {"prompt": "a dog"}
    )
    refused = await asked(site, way, **other)
    assert (refused.status_code == 409 and "Idempotency-Key" in refused.text) or way == "dashscope"
    assert refused.status_code == 409
    assert (await asked(site, way, ADMIN, **other)).status_code == 200
    await tasks(site, 2)


async def test_sent_twice_at_once_it_is_made_once(site: Site) -> None:
    answers = await asyncio.gather(*(asked(site, "task api, waiting") for _ in range(8)))
    assert len({one.json()["taskId"] for one in answers}) == 1
    await tasks(site, 1)


async def test_an_odd_key_is_refused(site: Site) -> None:
    for key in ("", "x" * 256):
        path, body, headers = WAYS["task api"]
        answer = await site.ask("POST", path, json=body, headers={**headers, "Idempotency-Key": key})
        assert answer.status_code == 400 and "Idempotency-Key" in answer.text


async def test_a_task_that_the_end_of_the_service_failed_gives_its_key_back(open_one: Open) -> None:
    store = SqlStore(open_one())
    first, second = job("bob"), job("bob")
    await store.add(first, limit=9, idempotency=("key", "same"))
    await store.end(first.id, "failed", error=ShuttingDown("the service is stopping"))
    assert (await store.add(second, limit=9, idempotency=("key", "same"))).id == second.id
