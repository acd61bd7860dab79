from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sd_cloud.dialects.tasks_admin import function_name
from tests.dialects.sdapi_world import Native, native

SMALL = {
    "stable_diffusion_model": "first",
    "prompt": "a cat",
    "width": 64,
    "height": 64,
    "steps": 2,
    "seed": 7,
}
ASYNC = {"Request-Type": "async"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Native]:
    async with native(tmp_path) as one:
        yield one


async def ended(world: Native, task_id: str, **headers: str) -> dict[str, Any]:
    async for task in world.service.changes(task_id):
        if task.over:
            break
    answer = await world.client.get(f"/tasks/{task_id}/result", headers=headers)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_a_picture_by_default_synchronously_and_its_link_needs_no_token(world: Native) -> None:
    answer = await world.client.post("/txt2img", json=SMALL)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["status"] == "succeeded" and len(told["ossUrl"]) == 1
    picture = await world.client.get(httpx.URL(told["ossUrl"][0]).raw_path.decode())
    assert picture.status_code == 200 and picture.content.startswith(b"\x89PNG")
    result = await ended(world, told["taskId"])
    assert result["images"] == [f"images/local/{told['taskId']}_1.png"]
    assert result["info"]["seed"] == 7 and result["parameters"]["prompt"] == "a cat"


async def test_asynchronously_the_answer_is_the_task_and_the_result_is_asked_for(world: Native) -> None:
    answer = await world.client.post("/txt2img", json={**SMALL, "batch_size": 3}, headers=ASYNC)
    assert answer.json()["status"] == "submitted" and answer.headers["taskId"] == answer.json()["taskId"]
    result = await ended(world, answer.json()["taskId"])
    assert result["status"] == "succeeded" and len(result["images"]) == len(result["ossUrl"]) == 3


async def test_a_stored_key_of_one_task_is_the_input_of_the_next(world: Native) -> None:
    first = (await world.client.post("/txt2img", json=SMALL)).json()
    body = {**SMALL, "init_images": [first["images"][0]], "denoising_strength": 0.5}
    answer = await world.client.post("/img2img", json=body)
    assert answer.status_code == 200, answer.text
    assert world.job.kind == "img2img" and len(world.job.payload["init_images"][0]) > 100


async def test_extras_take_a_stored_key_too(world: Native) -> None:
    first = (await world.client.post("/txt2img", json=SMALL)).json()
    body = {"resize_mode": 0, "upscaling_resize": 2, "upscaler_1": "Lanczos", "image": first["images"][0]}
    answer = await world.client.post("/extra_images", json=body)
    assert answer.status_code == 200 and answer.json()["status"] == "succeeded", answer.text


async def test_progress_says_step_and_eta_and_cancel_takes_effect_before_the_next_step(world: Native) -> None:
    world.engine.step_seconds = 0.05
    task_id = (await world.client.post("/txt2img", json={**SMALL, "steps": 400}, headers=ASYNC)).json()[
        "taskId"
    ]
    progress: dict[str, Any] = {}
    async for _ in world.service.changes(task_id):
        progress = (await world.client.get(f"/tasks/{task_id}/progress")).json()
        if progress["progress"] > 0:
            break
    assert progress["taskId"] == task_id and progress["state"]["phase"] == "running"
    assert progress["state"]["sampling_steps"] == 400 and progress["etaRelative"] > 0
    cancelled = await world.client.post(f"/tasks/{task_id}/cancellation")
    assert cancelled.json()["status"] == "cancelled"
    result = await ended(world, task_id)
    assert result["status"] == "cancelled" and result["images"] == []


async def test_cancelling_one_waiting_task_touches_no_other(world: Native) -> None:
    world.engine.step_seconds = 0.02
    ids = []
    for number in range(4):
        body = {**SMALL, "seed": number, "steps": 2 if number else 1000}
        ids.append((await world.client.post("/txt2img", json=body, headers=ASYNC)).json()["taskId"])
    await world.client.post(f"/tasks/{ids[2]}/cancellation")
    async for _ in world.service.changes(ids[0]):
        if await world.service.interrupt(ids[0]):
            break
    states = [(await ended(world, one))["status"] for one in ids]
    assert states == ["succeeded", "succeeded", "cancelled", "succeeded"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/txt2img", {"prompt": "no model"}, "stable_diffusion_model"),
        ("/txt2img", {**SMALL, "stable_diffusion_model": 3}, "stable_diffusion_model"),
        ("/txt2img", {**SMALL, "steps": "many"}, "steps"),
        ("/txt2img", {**SMALL, "save_dir": "/etc"}, "save_dir"),
        ("/txt2img", {**SMALL, "callback_url": "ftp://x"}, "callback_url"),
        ("/img2img", SMALL, "init_images"),
        ("/extra_images", {"resize_mode": 0}, "image"),
        ("/extra_images", {"image": "a.png"}, "resize_mode"),
    ],
)
async def test_a_bad_request_names_the_field(world: Native, path: str, body: Any, field: str) -> None:
    answer = await world.client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == 400 and field in answer.json()["message"]


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[1]", b"\xff", b"[" * 100_000, b'{"a":' * 5000])
async def test_a_body_that_is_no_object_is_refused(world: Native, body: bytes) -> None:
    answer = await world.client.post("/txt2img", content=body)
    assert answer.status_code == 400 and "body" in answer.json()["message"]


async def test_an_unknown_checkpoint_and_an_unknown_task_are_not_found(world: Native) -> None:
    answer = await world.client.post("/txt2img", json={**SMALL, "stable_diffusion_model": "third"})
    assert answer.status_code == 404 and "third" in answer.json()["message"]
    for verb in ("progress", "result"):
        assert (await world.client.get(f"/tasks/nothing/{verb}")).status_code == 404
    assert (await world.client.post("/tasks/nothing/cancellation")).status_code == 404


async def test_the_same_idempotency_key_and_body_is_the_same_task(world: Native) -> None:
    headers = {**ASYNC, "Idempotency-Key": "order 7"}
    first, again = [
        (await world.client.post("/txt2img", json=SMALL, headers=headers)).json() for _ in range(2)
    ]
    assert first["taskId"] == again["taskId"]
    other = await world.client.post("/txt2img", json={**SMALL, "seed": 8}, headers=headers)
    assert other.status_code == 409


# -- any other route as a task --------------------------------------------------------------------


async def test_a_native_route_with_the_task_flag_keeps_its_answer_as_a_result(world: Native) -> None:
    body = {"prompt": "a dog", "width": 64, "height": 64, "steps": 1, "seed": 3}
    plain = await world.client.post("/sdapi/v1/txt2img", json=body)
    flagged = await world.client.post("/sdapi/v1/txt2img", json=body, headers={"Task-Flag": "true"})
    assert flagged.status_code == 200 and flagged.json()["images"] == plain.json()["images"]
    result = await ended(world, flagged.headers["taskId"])
    assert result["status"] == "succeeded" and result["images"] == flagged.json()["images"]
    assert "taskid" not in plain.headers


async def test_it_is_one_task_with_one_id_whatever_the_route_asks_for(world: Native) -> None:
    world.engine.step_seconds = 0.05
    body = {"prompt": "a dog", "width": 64, "height": 64, "steps": 400}
    answer = await world.client.post("/sdapi/v1/txt2img", json=body, headers={**ASYNC, "Task-Flag": "true"})
    task_id = answer.json()["taskId"]
    async for _ in world.service.changes(task_id):
        if (await world.client.get(f"/tasks/{task_id}/progress")).json()["progress"] > 0:
            break
    assert world.job.id == task_id
    assert (await world.client.post(f"/tasks/{task_id}/cancellation")).json()["status"] == "cancelled"
    assert (await ended(world, task_id))["status"] == "cancelled"


async def test_a_get_route_and_a_refusal_are_kept_as_they_are(world: Native) -> None:
    samplers = await world.client.get("/sdapi/v1/samplers", headers={"Task-Flag": "1"})
    assert samplers.json() == (await world.client.get("/sdapi/v1/samplers")).json()
    refused = await world.client.post("/sdapi/v1/txt2img", json={"steps": "x"}, headers={"Task-Flag": "1"})
    assert refused.status_code == 422 and refused.headers["taskId"]
    result = await ended(world, refused.headers["taskId"])
    assert result["status"] == "failed" and "detail" in result["info"]


async def test_a_replayed_call_has_no_more_rights_than_its_caller(world: Native) -> None:
    await _user(world, "anna", "user")
    token = await _login(world, "anna")
    answer = await world.client.post(
        "/sdapi/v1/options", json={}, headers={"Task-Flag": "1", "Authorization": token}
    )
    assert answer.status_code == 403


# -- models, options, functions -------------------------------------------------------------------


async def test_models_are_listed_with_the_guides_fields(world: Native) -> None:
    listed = (await world.client.get("/models")).json()
    first = next(one for one in listed if one["name"] == "first.safetensors")
    assert {
        "type",
        "name",
        "ossPath",
        "etag",
        "status",
        "registeredTime",
        "lastModificationTime",
    } <= first.keys()
    assert first["type"] == "stableDiffusion" and first["status"] in ("loaded", "unloaded")
    await world.client.post("/txt2img", json=SMALL)
    assert (await world.client.get("/models/first.safetensors")).json()["status"] == "loaded"


async def test_a_model_is_registered_updated_and_deleted(world: Native) -> None:
    folder = world.settings.folders.loras[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "given.safetensors").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    body = {"type": "lora", "name": "given.safetensors", "ossPath": "given.safetensors"}
    wrong = await world.client.post("/models", json={**body, "etag": "0" * 64})
    assert wrong.status_code == 400 and sha256 in wrong.json()["message"]
    right = await world.client.post("/models", json={**body, "etag": sha256})
    assert right.status_code == 200 and right.json()["status"] == "unloaded"
    updated = await world.client.put(
        "/models/given.safetensors", json={"etag": hashlib.md5(b"weights").hexdigest()}
    )
    assert updated.status_code == 200, updated.text
    assert (await world.client.delete("/models/given.safetensors")).json()["status"] == "deleted"
    assert not (folder / "given.safetensors").exists()
    assert (await world.client.get("/models/given.safetensors")).status_code == 404


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"type": "spell"}, "type"),
        ({"name": "../x.safetensors"}, "name"),
        ({"ossPath": "../../../etc/passwd"}, "ossPath"),
        ({"ossPath": "http://169.254.169.254/x.safetensors"}, "ossPath"),
        ({"ossPath": "oss://other/x.safetensors"}, "ossPath"),
        ({"etag": "xyz"}, "etag"),
    ],
)
async def test_what_cannot_be_registered_is_refused_by_field(
    world: Native, changes: dict[str, str], field: str
) -> None:
    body = {"type": "lora", "name": "a.safetensors", "ossPath": "a.safetensors", **changes}
    answer = await world.client.post("/models", json=body)
    assert answer.status_code == 400 and field in answer.json()["message"], answer.text


async def test_options_are_the_native_ones(world: Native) -> None:
    for data in ({"jpeg_quality": 71}, json.dumps({"jpeg_quality": 72})):
        answer = await world.client.post("/options", json={"data": data})
        assert answer.json() == {"message": "success"}
    assert (await world.get("options"))["jpeg_quality"] == 72
    assert (await world.client.post("/options", json={"data": 3})).status_code == 400


async def test_functions_are_checkpoints_with_the_resources_they_were_given(world: Native) -> None:
    first = function_name("first.safetensors")
    given = {"models": ["first"], "cpu": 4, "memorySize": 16384, "env": {}}
    assert (await world.client.post("/batch_update_sd_resource", json=given)).json()["status"] == "success"
    for path in ("/list/sdapi/functions", "/list/sdapi/fucntions"):
        listed = (await world.client.get(path)).json()["functions"]
        assert {
            "functionName": first,
            "model": "first.safetensors",
            "cpu": 4,
            "memorySize": 16384,
            "env": {},
        } in listed
    unknown = await world.client.post("/batch_update_sd_resource", json={"models": ["third"], "cpu": 1})
    assert unknown.status_code == 500 and unknown.json()["failFuncList"]
    assert (await world.client.post("/batch_update_sd_resource", json={"cpus": 1})).status_code == 400
    gone = await world.client.post("/del/sd/functions", json={"functions": [first, "sd_x"]})
    assert gone.status_code == 500 and gone.json()["fails"][0]["functionName"] == "sd_x"
    names = [
        one["functionName"] for one in (await world.client.get("/list/sdapi/functions")).json()["functions"]
    ]
    assert first not in names and len(first) == 67


# -- who may --------------------------------------------------------------------------------------


async def _user(world: Native, name: str, role: str) -> None:
    from sd_cloud.access.users import hashed

    users = world.app.state.sd_cloud_access.users
    await users.table.add(name, role=role, password=hashed("correct horse"))
    users._nobody_until = 0.0


async def _login(world: Native, name: str) -> str:
    answer = await world.client.post("/login", json={"userName": name, "password": "correct horse"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["token"])


async def test_the_login_token_is_taken_in_either_header_and_nobody_is_let_in_without(world: Native) -> None:
    await _user(world, "anna", "user")
    token = await _login(world, "anna")
    for header in ({"Token": token}, {"Authorization": token}, {"Authorization": f"Bearer {token}"}):
        assert (await world.client.get("/models", headers=header)).status_code == 200
    for header in ({}, {"Token": "x"}, {"Authorization": "Bearer y"}):
        assert (await world.client.get("/models", headers=header)).status_code == 401
    wrong = await world.client.post("/login", json={"userName": "anna", "password": "wrong"})
    assert wrong.status_code == 401 and wrong.json()["code"] == 401


async def test_another_users_task_is_not_found(world: Native) -> None:
    for name, role in (("anna", "user"), ("ben", "user"), ("root", "admin")):
        await _user(world, name, role)
    anna, ben, root = [{"Token": await _login(world, name)} for name in ("anna", "ben", "root")]
    made = (await world.client.post("/txt2img", json=SMALL, headers=anna)).json()
    assert made["images"] == [f"images/anna/{made['taskId']}_1.png"]
    for method, verb in (("GET", "progress"), ("GET", "result"), ("POST", "cancellation")):
        path = f"/tasks/{made['taskId']}/{verb}"
        assert (await world.client.request(method, path, headers=ben)).status_code == 404
        assert (await world.client.request(method, path, headers=root)).status_code == 200
    stolen = {**SMALL, "init_images": made["images"]}
    refused = await world.client.post("/img2img", json=stolen, headers=ben)
    assert refused.status_code in (400, 404), refused.text


async def test_a_quota_is_a_429_that_names_it(world: Native) -> None:
    users = world.app.state.sd_cloud_access.users
    await users.table.add("anna", role="user", daily_pictures=2)
    users._nobody_until = 0.0
    headers = {"Token": await users.make_token("anna", "test", None)}
    assert (
        await world.client.post("/txt2img", json={**SMALL, "batch_size": 2}, headers=headers)
    ).status_code == 200
    over = await world.client.post("/txt2img", json=SMALL, headers=headers)
    assert over.status_code == 429 and "2 of 2 pictures" in over.json()["message"]


# -- the OpenAPI file -----------------------------------------------------------------------------

SPECIFICATION = Path(__file__).parents[3] / "shared" / "reference" / "serverless-api.yaml"
BODIES: dict[str, Any] = {
    "/models": {"type": "lora", "name": "w.safetensors", "ossPath": "w.safetensors"},
    "/models/{model_name}": {},
    "/txt2img": SMALL,
    "/extra_images": {"resize_mode": 0, "upscaling_resize": 2, "upscaler_1": "None"},
    "/options": {"data": {"jpeg_quality": 80}},
    "/login": {"userName": "root", "password": "correct horse"},
    "/batch_update_sd_resource": {"cpu": 1},
    "/restart": None,
}


def _fits(value: Any, schema: dict[str, Any], schemas: dict[str, Any], where: str) -> None:
    """The little of JSON schema that the file uses."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rsplit("/", 1)[1]]
    for part in schema.get("allOf", ()):
        _fits(value, part, schemas, where)
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "number": (int, float),
        "integer": int,
        "boolean": bool,
    }
    if schema.get("type"):
        assert isinstance(value, kinds[schema["type"]]), f"{where}: {value!r} is no {schema['type']}"
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            assert name in value, f"{where}: {name} is missing in {value}"
        for name, one in schema.get("properties", {}).items():
            if name in value:
                _fits(value[name], one, schemas, f"{where}.{name}")
    if isinstance(value, list) and "items" in schema:
        for one in value:
            _fits(one, schema["items"], schemas, where)


async def test_every_path_of_the_openapi_file_answers_as_it_says(tmp_path: Path) -> None:
    if not SPECIFICATION.exists():
        pytest.skip("the guide's serverless-api.yaml is not beside this checkout (../shared)")
    import yaml

    specification = yaml.safe_load(SPECIFICATION.read_text())
    schemas = specification["components"]["schemas"]
    async with native(tmp_path) as world:
        await _user(world, "root", "admin")
        headers = {"Token": await _login(world, "root")}
        folder = world.settings.folders.loras[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "w.safetensors").write_bytes(b"w")
        task = (await world.client.post("/txt2img", json=SMALL, headers=headers)).json()
        bodies = {
            **BODIES,
            "/img2img": {**SMALL, "init_images": task["images"]},
            "/extra_images": {**BODIES["/extra_images"], "image": task["images"][0]},
            "/del/sd/functions": {"functions": [function_name("second.safetensors")]},
        }
        walked = 0
        for template, methods in specification["paths"].items():
            path = template.replace("{model_name}", "w.safetensors").replace("{taskId}", task["taskId"])
            order = [m for m in ("post", "get", "put", "delete") if m in methods]
            for method in order:
                answer = await world.client.request(method, path, json=bodies.get(template), headers=headers)
                if template == "/restart":
                    assert answer.status_code == 501  # this test's engine has no process to restart
                    _fits(answer.json(), schemas["Error"], schemas, path)
                    walked += 1
                    continue
                assert answer.status_code == 200, f"{method} {path}: {answer.text}"
                content = methods[method]["responses"]["200"].get("content")
                if content:
                    _fits(answer.json(), content["application/json"]["schema"], schemas, f"{method} {path}")
                # And without a token everything but the log-in is refused in the file's own shape.
                if template != "/login":
                    refused = await world.client.request(method, path, json=bodies.get(template))
                    assert refused.status_code == 401
                    _fits(refused.json(), schemas["Error"], schemas, path)
                walked += 1
        assert walked == sum(len(methods) for methods in specification["paths"].values())


async def test_a_hundred_requests_at_once_all_get_their_own(world: Native) -> None:
    answers = await asyncio.gather(
        *(world.client.post("/txt2img", json={**SMALL, "seed": n}, headers=ASYNC) for n in range(100))
    )
    ids = [answer.json()["taskId"] for answer in answers]
    results = [await ended(world, one) for one in ids]
    assert [result["info"]["seed"] for result in results] == list(range(100))
