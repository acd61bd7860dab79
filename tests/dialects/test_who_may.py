"""The list of admin routes, walked as a plain user; and each verb of each dialect on another's task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from sd_cloud.access import ADMIN_ROUTES, needs_admin
from sd_cloud.access.routes import USER_ROUTES
from sd_cloud.roots import OWNERS_FOLDER
from sd_cloud.store.base import Task
from tests.dialects.test_idempotency import WAYS
from tests.dialects.test_pages import ADMIN, BOB, EVE, Site, job, site_of


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_of(tmp_path, filebrowser=True) as made:
        yield made


#: What stands below a user's name and is no change of the user.
ON_TOKENS = (("GET", "/sd-cloud/v1/users/*"), ("POST", "/sd-cloud/v1/users/*"))

# -- routes ---------------------------------------------------------------------------------------


def changing(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every route that may change something: all but GET and what belongs to it."""
    for route in app.router.routes:
        if isinstance(route, APIRoute):
            for method in sorted(route.methods - {"GET", "HEAD", "OPTIONS"}):
                yield method, route.path


async def test_every_changing_route_is_an_admins_or_is_known_to_be_everybodys(site: Site) -> None:
    found = list(changing(site.app))
    assert len(found) > 20
    for method, path in found:
        assert needs_admin(method, path) != ((method, path) in USER_ROUTES), (
            f"{method} {path} must be in exactly one list of access/routes.py"
        )


async def test_the_standalone_app_has_no_other_changing_route(tmp_path: Path) -> None:
    world = pytest.importorskip("tests.dialects.sdapi_world", reason="needs the current stack")
    async with world.native(tmp_path, filebrowser=True, api_server_stop=True) as native:
        found = list(changing(native.app))
    assert ("POST", "/sdapi/v1/server-kill") in found
    for method, path in found:
        assert needs_admin(method, path) != ((method, path) in USER_ROUTES), f"{method} {path}"
    listed = {route for route in USER_ROUTES if not route[1].startswith("/sd-cloud/v1/browse")}
    assert listed <= set(found), "a list has routes that are gone"


async def test_a_plain_user_is_refused_every_admin_route_of_the_standalone_app(tmp_path: Path) -> None:
    world = pytest.importorskip("tests.dialects.sdapi_world", reason="needs the current stack")
    async with world.native(tmp_path, filebrowser=True, api_server_stop=True) as native:
        users = native.app.state.sd_cloud_access.users
        await users.table.add("anna", role="admin")
        await users.table.add("bob", role="user")
        users._nobody_until = 0.0
        headers = {"Authorization": await users.make_token("bob", "test", None)}
        for method, path in ADMIN_ROUTES:
            asked = path.replace("*", "x")
            answer = await native.client.request(method, asked, headers=headers, json={"data": {}})
            assert answer.status_code == 403 and "admin" in answer.text, (method, asked, answer.text)
            other = await native.client.request(method, asked + "/", headers=headers, json={"data": {}})
            assert other.status_code in (403, 404, 405), (method, asked, other.text)
        # The same through the queue: replayed, it has no more rights.
        for method, path in ADMIN_ROUTES:
            if method == "POST" and "*" not in path:
                put = await native.client.post(f"/api/predict/sd_async{path}", headers=headers, json={})
                if put.status_code == 200:
                    task_id = put.headers["x-eas-queueservice-request-id"]
                    with pytest.raises(Exception, match="admin"):
                        await native.service.result(task_id)


@pytest.mark.parametrize(
    ("method", "path"), [route for route in ADMIN_ROUTES if not route[1].startswith("/sdapi/")]
)
async def test_a_plain_user_is_refused_our_own_admin_routes_wherever_they_hang(
    site: Site, method: str, path: str
) -> None:
    """Inside the webui no gate stands in front: each route asks for itself."""
    below = "x/tokens" if (method, path) in ON_TOKENS else "x"
    answer = await site.ask(method, path.replace("*", below), BOB, json={})
    assert answer.status_code == 403 and "admin" in answer.text


# -- tasks ----------------------------------------------------------------------------------------

#: How each dialect reaches a task by its id.
VERBS = {
    "ours: see": ("GET", "/sd-cloud/v1/tasks/{id}"),
    "ours: events": ("GET", "/sd-cloud/v1/tasks/{id}/events"),
    "ours: cancel": ("POST", "/sd-cloud/v1/tasks/{id}/cancel"),
    "task api: progress": ("GET", "/tasks/{id}/progress"),
    "task api: result": ("GET", "/tasks/{id}/result"),
    "task api: cancel": ("POST", "/tasks/{id}/cancellation"),
    "dashscope: fetch": ("GET", "/api/v1/tasks/{id}"),
    "dashscope: cancel": ("POST", "/api/v1/tasks/{id}/cancel"),
}


async def made(site: Site, way: str, **changes: Any) -> Task:
    """A task of bob's, asked for in a dialect."""
    path, body, headers = WAYS[way]
    answer = await site.ask("POST", path, BOB, json={**body, **changes}, headers=headers)
    assert answer.status_code == 200, answer.text
    return (await site.service.store.find(limit=1))[0]


async def held(site: Site) -> str:
    """The engine is busy with a task of the operator's: whatever comes next waits."""
    return await site.service.submit(job("local", steps=100_000, step_seconds=0.01))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("way", WAYS)
async def test_another_users_task_is_as_one_that_never_was(site: Site, way: str, verb: str) -> None:
    task = await made(site, way)
    await site.service.result(task.id)
    method, path = VERBS[verb]
    hers = await site.ask(method, path.format(id=task.id), EVE)
    nobodys = await site.ask(method, path.format(id="0" * 32), EVE)
    assert hers.status_code == nobodys.status_code == 404
    said = [answer.text.replace(task.id, "0" * 32) for answer in (hers, nobodys)]
    if not verb.startswith("dashscope"):  # each of its answers has an id of its own
        assert said[0] == said[1]
    for caller in (BOB, ADMIN):
        own = await site.ask(method, path.format(id=task.id), caller)
        # DashScope's refusal to cancel what is over.
        assert own.status_code == (400 if verb == "dashscope: cancel" else 200), own.text


@pytest.mark.parametrize("verb", [one for one in VERBS if one.endswith("cancel")])
async def test_another_user_cancels_nothing(site: Site, verb: str) -> None:
    blocker = await held(site)
    task = await made(site, "task api")
    method, path = VERBS[verb]
    assert (await site.ask(method, path.format(id=task.id), EVE)).status_code == 404
    assert (await site.service.task(task.id)).state in ("pending", "running")
    assert (await site.ask(method, path.format(id=task.id), BOB)).status_code == 200
    with pytest.raises(Exception, match="cancelled"):
        await site.service.result(task.id)
    await site.service.cancel(blocker)


@pytest.mark.parametrize("way", WAYS)
async def test_lists_queues_and_files_show_another_user_nothing(site: Site, way: str) -> None:
    task = await made(site, way)
    outcome = await site.service.result(task.id)

    async def seen(caller: Any) -> dict[str, Any]:
        async def json_of(path: str) -> Any:
            return (await site.ask("GET", path, caller)).json()

        return {
            "tasks": [one["id"] for one in (await json_of("/sd-cloud/v1/tasks"))["tasks"]],
            "dashscope": [one["task_id"] for one in (await json_of("/api/v1/tasks"))["data"]],
            "input": await json_of("/api/predict/sd_async"),
            "sink": await json_of("/api/predict/sd_async/sink"),
            "length": (await json_of("/api/predict/sd_async/sink?_attrs_=true"))["stream.length"],
        }

    nothing = {"tasks": [], "dashscope": [], "input": [], "sink": [], "length": "0"}
    assert await seen(EVE) == nothing
    assert (await seen(BOB))["tasks"] == [task.id]
    for picture in outcome.pictures:
        if picture.path is None or f"/{OWNERS_FOLDER}/" not in picture.path:
            continue  # a save_dir of the EAS parameters is a folder that callers share
        stolen = {"stable_diffusion_model": "first", "prompt": "x", "init_images": [picture.path]}
        refused = await site.ask("POST", "/img2img", EVE, json=stolen)
        assert refused.status_code in (400, 404), refused.text
        inside = Path(picture.path).relative_to(site.service.inputs._settings.data_dir)  # type: ignore[attr-defined]
        for method in ("GET", "DELETE"):
            browsed = await site.ask(method, f"/sd-cloud/v1/browse/file?path={inside}", EVE)
            assert browsed.status_code in (403, 404), (method, browsed.status_code)
        assert await asyncio.to_thread(Path(picture.path).exists)


async def test_another_user_takes_no_message_out_of_a_queue_that_is_not_theirs(site: Site) -> None:
    blocker = await held(site)
    path, body, headers = WAYS["queue"]
    put = await site.ask("POST", path, BOB, json=body, headers=headers)
    index, task_id = put.text, put.headers["x-eas-queueservice-request-id"]
    queue = "/api/predict/sd_async"
    assert (await site.ask("GET", f"{queue}?_search_=true&_index_={index}", EVE)).status_code == 404
    await site.ask("DELETE", f"{queue}?_indexes_={index}", EVE)
    await site.ask("DELETE", f"{queue}?_trunc_=true&_index_={int(index) + 1}", EVE)
    await site.ask("PUT", f"{queue}/sink?_indexes_={index}", EVE)
    assert (await site.service.task(task_id)).state in ("pending", "running")
    assert len((await site.ask("GET", queue, BOB)).json()) == 1
    for one in (task_id, blocker):
        await site.service.cancel(one)


async def test_the_native_progress_shows_a_plain_user_only_what_is_theirs(tmp_path: Path) -> None:
    world = pytest.importorskip("tests.dialects.sdapi_world", reason="needs the current stack")
    async with world.native(tmp_path) as native:
        native.engine.step_seconds = 0.01
        users = native.app.state.sd_cloud_access.users
        for name, role in (("anna", "admin"), ("bob", "user"), ("eve", "user")):
            await users.table.add(name, role=role)
        users._nobody_until = 0.0
        task_id = await native.service.submit(job("bob", steps=100_000))
        while native.service.running is None:
            await native.service.queue_length()
        shown = {}
        for name in ("anna", "bob", "eve"):
            headers = {"Authorization": await users.make_token(name, "test", None)}
            told = (await native.client.get("/sdapi/v1/progress", headers=headers)).json()
            shown[name] = told["state"]["job_count"] > 0
        assert shown == {"anna": True, "bob": True, "eve": False}
        await native.service.cancel(task_id)
