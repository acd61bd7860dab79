"""A task is one task, whichever way it was asked for: its id finds it in every dialect."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.dialects.sdapi_world import Native, native

SIZE = {"width": 512, "height": 512}
NATIVE = {"prompt": "a cat", "steps": 2, "seed": 7, "n_iter": 2, **SIZE}
DASHSCOPE: dict[str, Any] = {
    "model": "stable-diffusion-xl",
    "input": {"prompt": "a cat"},
    "parameters": {"size": "512*512", "n": 2, "seed": 7},
}
WAYS = ("native", "flagged", "eas", "tasks", "dashscope", "queue", "queue to the task API")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Native]:
    async with native(tmp_path) as one:
        yield one


async def start(world: Native, way: str, *, steps: int = 2) -> str:
    """Ask for two pictures of a cat; the task's id, by what that dialect answers."""
    post = world.client.post
    asked = {**NATIVE, "steps": steps}
    if way == "native":  # its answer is the webui's own and has no id
        assert (await post("/sdapi/v1/txt2img", json={**asked, "save_images": True})).status_code == 200
        return world.job.id
    if way == "flagged":
        answer = await post("/sdapi/v1/txt2img", json=asked, headers={"Task-Flag": "true"})
        return answer.headers["taskId"]
    if way == "eas":
        body = {**asked, "alwayson_scripts": {"save_dir": "x", "id_task": "mine"}}
        assert (await post("/sdapi/v1/txt2img", json=body)).json()["parameters"]["id_task"] == "mine"
        return world.job.id
    if way == "tasks":
        body = {**asked, "stable_diffusion_model": "first"}
        answer = await post("/txt2img", json=body, headers={"Request-Type": "async"})
        return str(answer.json()["taskId"])
    if way == "dashscope":
        headers = {"X-DashScope-Async": "enable"}
        path = "/api/v1/services/aigc/text2image/image-synthesis"
        body = {**DASHSCOPE, "parameters": {**DASHSCOPE["parameters"], "steps": steps}}
        answer = await post(path, json=body, headers=headers)
        return str(answer.json()["output"]["task_id"])
    route = "sdapi/v1/txt2img" if way == "queue" else "txt2img"
    body = {**asked, "stable_diffusion_model": "first"} if route == "txt2img" else asked
    answer = await post(f"/api/predict/sd_async/{route}", content=json.dumps(body))
    return answer.headers["X-Eas-Queueservice-Request-Id"]


async def got(world: Native, path: str) -> dict[str, Any]:
    answer = await world.client.get(path)
    assert answer.status_code == 200, (path, answer.text)
    return dict(answer.json())


@pytest.mark.parametrize("way", WAYS)
async def test_a_task_is_found_by_its_id_in_every_dialect(world: Native, way: str) -> None:
    task_id = await start(world, way)
    async for _ in world.service.changes(task_id):
        pass
    result = await got(world, f"/tasks/{task_id}/result")
    assert (result["taskId"], result["status"]) == (task_id, "succeeded")
    assert result["info"]["prompt"] == "a cat" and result["info"]["seed"] == 7, result["info"]
    assert (await got(world, f"/tasks/{task_id}/progress"))["progress"] == 1.0
    synthesis = await got(world, f"/api/v1/tasks/{task_id}")
    assert synthesis["output"]["task_id"] == task_id and synthesis["output"]["task_metrics"]["TOTAL"] == 2
    followed = await got(world, f"/sd-cloud/v1/tasks/{task_id}")
    assert followed["id"] == task_id and followed["state"] == "succeeded"
    assert synthesis["output"]["task_status"] == "SUCCEEDED" and synthesis["usage"]["image_count"] == 2
    assert len(result["images"]) == 2
    # The webui's own answer has the pictures in it: nothing is saved that a link could lead to.
    assert len(synthesis["output"]["results"]) == (0 if way in ("flagged", "queue") else 2)


@pytest.mark.parametrize("way", ["tasks", "dashscope", "queue"])
async def test_a_running_task_is_cancelled_by_its_id_in_every_other_dialect(world: Native, way: str) -> None:
    world.engine.step_seconds = 0.05
    for path in ("/tasks/{}/cancellation", "/api/v1/tasks/{}/cancel", "/sd-cloud/v1/tasks/{}/cancel"):
        task_id = await start(world, way, steps=500)
        assert (await world.client.post(path.format(task_id))).status_code == 200, path
        async for _ in world.service.changes(task_id):
            pass
        assert (await got(world, f"/tasks/{task_id}/result"))["status"] == "cancelled"
        assert (await got(world, f"/api/v1/tasks/{task_id}"))["output"]["task_status"] == "CANCELED"
