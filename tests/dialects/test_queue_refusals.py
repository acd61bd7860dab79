"""What a queued request may not do is refused as everywhere, at its put or in its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sd_cloud.access.users import digest
from sd_cloud.dialects.queue_frames import frames_of
from sd_cloud.store.queues import Message
from tests.dialects.sdapi_world import Native, native

PATH = "/api/predict/sd_async"
SINK = f"{PATH}/sink"
SMALL = {"prompt": "a cat", "width": 64, "height": 64, "steps": 1, "seed": 7}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Native]:
    async with native(tmp_path) as one:
        yield one


async def answered(
    world: Native, route: str, body: Any, headers: dict[str, str] | None = None
) -> tuple[str, Any]:
    """``message`` and data of the sink's answer to a queued request."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    put = await world.client.post(f"{PATH}/{route}", content=content, headers=headers)
    assert put.status_code == 200, put.text
    query = {"requestId": put.headers["X-Eas-Queueservice-Request-Id"], "_timeout_": "20s"}
    accept = {**(headers or {}), "Accept": "application/vnd.google.protobuf"}
    [message] = frames_of((await world.client.get(SINK, params=query, headers=accept)).content)
    assert isinstance(message, Message)
    return message.message, json.loads(message.data)


def listing(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file() and "state" not in path.parts}


@pytest.mark.parametrize(
    "link",
    [
        "http://169.254.169.254/latest/meta-data/", "http://100.100.100.200/", "http://127.0.0.1:22/a.png",
        "http://[::ffff:169.254.169.254]/a.png", "file:///etc/passwd", "oss://other/a.png",
    ],
)  # fmt: skip
async def test_a_link_that_is_not_allowed_is_not_followed(world: Native, link: str) -> None:
    body = {**SMALL, "alwayson_scripts": {"image_link": link, "save_dir": "x"}}
    _, data = await answered(world, "sdapi/v1/img2img", body)
    assert data["parameters"]["status"] == 1 and "image_link" in data["parameters"]["error_msg"]
    assert not world.engine.started


@pytest.mark.parametrize("folder", ["/etc", "../../up", "models", "/"])
async def test_nothing_is_saved_outside_the_output_roots(world: Native, tmp_path: Path, folder: str) -> None:
    before = listing(tmp_path)
    place = str(world.settings.data_dir / folder) if folder == "models" else folder
    body = {**SMALL, "alwayson_scripts": {"save_dir": place}}
    _, data = await answered(world, "sdapi/v1/txt2img", body)
    assert data["parameters"]["status"] == 1 and "save_dir" in data["parameters"]["error_msg"]
    assert listing(tmp_path) == before and not world.engine.started


async def test_only_post_routes_of_the_app_are_taken_and_never_the_queue_itself(world: Native) -> None:
    for route in (
        "sdapi/v1/nothing", "sdapi/v1/samplers", "healthz", "api/predict/sd_async",
        "api/predict/sd_async/sink", "/api/predict/sd_async/sdapi/v1/txt2img",
        "sdapi/v1/../../api/predict/sd_async/sink",
    ):  # fmt: skip
        answer = await world.client.post(f"{PATH}/{route}", content=b"{}")
        assert answer.status_code == 404, route
    count = await world.client.get(PATH, params={"_count_": "true"})
    assert count.text == "0" and await world.service.queue_length() == 0


async def test_a_body_that_is_not_json_is_answered_and_takes_no_turn(world: Native) -> None:
    for body in (
        b"",
        b"not json",
        b"\xff\xfe\x00",
        b"[" * 4000,
        b'{"alwayson_scripts":' * 300,
        b'{"steps": NaN}',
    ):
        message, _ = await answered(world, "sdapi/v1/txt2img", body)
        assert message in ("400", "422"), body[:20]
    assert not world.engine.started


async def test_an_admins_route_is_refused_to_a_plain_user_who_queues_it(world: Native) -> None:
    users = world.app.state.sd_cloud_access.users
    for name, role in (("anna", "user"), ("root", "admin")):
        await users.table.add(name, role=role)
        await users.table.add_token(name, digest(name), "test", None)
    users._nobody_until = 0.0
    anna, root = {"Authorization": "anna"}, {"Authorization": "root"}
    for route, body in (
        ("sdapi/v1/options", {"jpeg_quality": 3}), ("options", {"data": {"jpeg_quality": 3}}),
        ("sdapi/v1/unload-checkpoint", {}), ("models", {}), ("restart", {}),
    ):  # fmt: skip
        assert (await answered(world, route, body, anna))[0] == "403", route
    assert world.engine.unloaded == 0
    assert (await answered(world, "sdapi/v1/options", {"jpeg_quality": 3}, root))[0] == ""
    assert (await world.client.get("/sdapi/v1/options", headers=root)).json()["jpeg_quality"] == 3


async def test_credentials_in_a_put_do_not_reach_the_route_and_are_not_kept(world: Native) -> None:
    users = world.app.state.sd_cloud_access.users
    await users.table.add("anna", role="user")
    await users.table.add_token("anna", digest("annas secret"), "test", None)
    users._nobody_until = 0.0
    put = await world.client.post(
        f"{PATH}/sdapi/v1/txt2img", content=json.dumps(SMALL), headers={"Token": "annas secret"}
    )
    task = await world.service.task(put.headers["X-Eas-Queueservice-Request-Id"])
    assert task.job.owner == "anna" and "secret" not in json.dumps(dict(task.job.payload))


@pytest.mark.parametrize("route", ["txt2img", "sd-cloud/v1/tasks/nothing/cancel"])
async def test_a_route_of_another_dialect_can_be_queued(world: Native, route: str) -> None:
    """The only slot is held by the queued request while the route asks for a picture."""
    body = {**SMALL, "stable_diffusion_model": "first"}
    message, data = await asyncio.wait_for(answered(world, route, body), 120)
    if route == "txt2img":
        assert message == "" and data["status"] == "succeeded", data
        link = httpx.URL(data["ossUrl"][0]).raw_path.decode()
        assert (await world.client.get(link)).status_code == 200
    else:
        assert message == "404"
