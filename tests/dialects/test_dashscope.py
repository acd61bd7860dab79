"""DashScope's dialect, by the package its users have and by what the guides show of HTTP."""

from __future__ import annotations

import base64
import gc
import json
import struct
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

import httpx
import pytest
from sqlalchemy import update

from sd_cloud.access.users import digest
from sd_cloud.dialects.dashscope_models import MODELS, Choice, base_of
from sd_cloud.dialects.dashscope_request import within_limit
from sd_cloud.engines.base import Catalogue, Checkpoint
from sd_cloud.errors import CheckpointNotFound
from sd_cloud.store.schema import tasks
from tests.dialects.sdapi_world import Native, native
from tests.dialects.serving import Served, served

dashscope = pytest.importorskip("dashscope", reason="the dashscope package is not installed")

SUBMIT = "/api/v1/services/aigc/text2image/image-synthesis"
#: The package leaves sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ASYNC = {"X-DashScope-Async": "enable", "Authorization": "Bearer sk-any"}
#: The guide's own curl example.
GUIDE = {
    "model": "stable-diffusion-xl",
    "input": {"prompt": "a running cat", "negative_prompt": "yellow cat"},
    "parameters": {"size": "512*512", "n": 4, "seed": 42},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("data")) as one:
        yield one


@pytest.fixture
def client(server: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, pointed at us by its own setting."""
    monkeypatch.setattr(dashscope, "base_http_api_url", server.url + "/api/v1")
    monkeypatch.setattr(dashscope, "api_key", "your-dashscope-api-key")
    server.engine.step_seconds = 0.0
    yield dashscope.ImageSynthesis
    gc.collect()


# -- the package ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", sorted(MODELS))
def test_the_guides_blocking_call(client: Any, model: str) -> None:
    size = "512*512" if model.endswith("v1.5") else "1024*1024"
    answer = client.call(
        model=model,
        prompt="Eagle flying freely in the blue sky and white clouds",
        negative_prompt="garfield",
        n=1,
        size=size,
        steps=1,
    )
    assert answer.status_code == HTTPStatus.OK, answer
    assert answer.output.task_status == "SUCCEEDED" and answer.usage.image_count == 1
    for result in answer.output.results:
        name = PurePosixPath(unquote(urlparse(result.url).path)).parts[-1]
        assert name.endswith(".png")
        assert httpx.get(result.url).content.startswith(b"\x89PNG")


def test_the_guides_asynchronous_call_fetch_and_wait(client: Any) -> None:
    answer = client.async_call(
        model="stable-diffusion-xl", prompt="Eagle", negative_prompt="garfield", n=1, size="512*512", steps=2
    )
    assert answer.status_code == HTTPStatus.OK and answer.output.task_status == "PENDING"
    assert client.fetch(answer).status_code == HTTPStatus.OK
    done = client.wait(answer)
    assert done.output.task_status == "SUCCEEDED" and len(done.output.results) == 1


def test_cancel_and_list(server: Served, client: Any) -> None:
    server.engine.step_seconds = 0.05
    running, waiting = [
        client.async_call(model="stable-diffusion-xl", prompt=f"{n}", n=1, steps=500) for n in range(2)
    ]
    for one in (waiting, running):
        assert client.cancel(one).status_code == HTTPStatus.OK
        assert client.wait(one).output.task_status == "CANCELED"
    again = client.cancel(waiting)
    assert again.status_code == 400 and again.code == "UnsupportedOperation"
    listed = client.list(status="CANCELED", page_size=100)
    assert listed.status_code == HTTPStatus.OK
    ids = [one["task_id"] for one in listed.output["data"]]
    assert {running.output.task_id, waiting.output.task_id} <= set(ids)
    assert client.list(status="CANCELED", model_name="stable-diffusion-v1.5").output["total"] == 0


def test_a_refusal_reaches_the_package_with_its_code(client: Any) -> None:
    answer = client.async_call(model="stable-diffusion-xl", prompt="x", size="720*1280")
    assert answer.status_code == 400 and answer.code == "InvalidParameter"
    assert answer.message.startswith("The size is not match the allowed size ['512*512'")


def test_an_input_picture_that_cannot_be_had_fails_in_the_guides_words(client: Any) -> None:
    answer = client.call(
        model="stable-diffusion-3.5-large",
        prompt="x",
        extra_input={"init_image": "http://169.254.169.254/latest.png"},
    )
    assert answer.output.task_status == "FAILED" and answer.output["code"] == "InvalidParameter"
    assert answer.output["message"].startswith("The image source is invalid.")
    assert answer.output["task_metrics"] == {"TOTAL": 1, "SUCCEEDED": 0, "FAILED": 1}


# -- HTTP -----------------------------------------------------------------------------------------


@pytest.fixture
async def world(tmp_path: Path) -> Any:
    async with native(tmp_path) as one:
        yield one


async def submitted(world: Native, body: Any = GUIDE, **headers: str) -> str:
    answer = await world.client.post(SUBMIT, json=body, headers={**ASYNC, **headers})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["output"]["task_id"])


async def ended(world: Native, task_id: str) -> dict[str, Any]:
    async for task in world.service.changes(task_id):
        if task.over:
            break
    return dict((await world.client.get(f"/api/v1/tasks/{task_id}", headers=ASYNC)).json())


async def test_the_guides_curl_example_answers_in_the_guides_shape(world: Native) -> None:
    done = await ended(world, await submitted(world))
    output = done["output"]
    assert output["task_status"] == "SUCCEEDED" and done["usage"] == {"image_count": 4}
    assert output["task_metrics"] == {"TOTAL": 4, "SUCCEEDED": 4, "FAILED": 0}
    assert len(output["results"]) == 4 and done["request_id"]
    for moment in ("submit_time", "scheduled_time", "end_time"):
        assert len(output[moment]) == len("2024-06-14 14:30:44.096")
    asked = world.job.payload
    assert (asked["steps"], asked["cfg_scale"], asked["width"], asked["seed"]) == (50, 10.0, 512, 42)
    task = await world.service.task(output["task_id"])
    assert task.outcome is not None
    assert [p.seed for p in task.outcome.of_role("image")] == [42, 43, 44, 45]


async def test_a_picture_that_fails_is_told_by_itself_and_not_counted(world: Native) -> None:
    world.engine.step_seconds = 0.05
    task_id = await submitted(world)
    in_the_way = world.settings.outputs_dir / "images" / "local" / f"{task_id}_2.png"
    in_the_way.mkdir(parents=True)
    done = await ended(world, task_id)
    output = done["output"]
    assert output["task_status"] == "SUCCEEDED" and done["usage"] == {"image_count": 3}
    assert output["task_metrics"] == {"TOTAL": 4, "SUCCEEDED": 3, "FAILED": 1}
    [failed] = [one for one in output["results"] if "url" not in one]
    assert failed["code"] == "InternalError" and "could not be written" in failed["message"]
    assert sum("url" in one for one in output["results"]) == 3


async def test_sd35_takes_shift_cfg_and_an_input_picture(world: Native) -> None:
    first = await ended(world, await submitted(world, {**GUIDE, "parameters": {"n": 1, "size": "512*512"}}))
    link = httpx.URL(first["output"]["results"][0]["url"])
    picture = (await world.client.get(link.raw_path.decode())).content
    body = {
        "model": "stable-diffusion-3.5-large-turbo",
        "input": {"prompt": "x", "init_image": base64.b64encode(picture).decode()},
        "parameters": {"cfg": 4.5, "shift": 3.5, "denoise": 0.6, "steps": 4},
    }
    done = await ended(world, await submitted(world, body))
    assert done["output"]["task_status"] == "SUCCEEDED", done
    job = world.job
    assert job.kind == "img2img" and job.family == {"shift": 3.5} and job.payload["denoising_strength"] == 0.6
    assert job.payload["cfg_scale"] == 4.5 and job.payload["n_iter"] == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"input": {}}, "input.prompt"),
        ({"input": {"prompt": "  "}}, "input.prompt"),
        ({"input": {"prompt": 3}}, "input.prompt"),
        ({"input": "x"}, "input"),
        ({"parameters": {"n": 5}}, "n must be between 1 and 4"),
        ({"parameters": {"n": 1.5}}, "n must be an integer"),
        ({"parameters": {"n": True}}, "n must be an integer"),
        ({"parameters": {"steps": 501}}, "steps must be between 1 and 500"),
        ({"parameters": {"scale": 16}}, "scale must be between 1 and 15"),
        ({"parameters": {"scale": float("nan")}}, "scale must be a number"),
        ({"parameters": {"seed": -5}}, "seed must be between"),
        ({"parameters": {"size": "1024x1024"}}, "allowed size"),
        ({"model": "stable-diffusion-v1.5", "parameters": {"size": "1024*1024"}}, "allowed size ['512*512']"),
    ],
)
async def test_a_parameter_out_of_range_is_invalid(world: Native, changes: Any, told: str) -> None:
    content = json.dumps({**GUIDE, **changes})
    headers = {**ASYNC, "Content-Type": "application/json"}
    answer = await world.client.post(SUBMIT, content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == "InvalidParameter" and told in answer.json()["message"], answer.text
    assert answer.json()["request_id"]


async def test_other_refusals_have_dashscopes_own_codes(world: Native) -> None:
    unknown = await world.client.post(SUBMIT, json={**GUIDE, "model": "wanx-v1"}, headers=ASYNC)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "ModelNotFound")
    blocking = await world.client.post(SUBMIT, json=GUIDE)
    assert (blocking.status_code, blocking.json()["code"]) == (403, "AccessDenied")
    for body in (b"", b"[]", b"{", b"[" * 100_000):
        assert (await world.client.post(SUBMIT, content=body, headers=ASYNC)).json()[
            "code"
        ] == "InvalidParameter"
    foreign = await world.client.post(SUBMIT, json=GUIDE, headers={**ASYNC, "X-Forwarded-For": "1.2.3.4"})
    assert foreign.status_code == 401
    assert foreign.json() == {
        **foreign.json(),
        "code": "InvalidApiKey",
        "message": "Invalid API-key provided.",
    }


async def test_a_task_that_never_was_is_unknown(world: Native) -> None:
    answer = await world.client.get("/api/v1/tasks/86ecf553-d340-4e21-af6e-a0c6a421c010", headers=ASYNC)
    assert answer.status_code == 404 and answer.json()["output"]["task_status"] == "UNKNOWN"
    cancel = await world.client.post("/api/v1/tasks/86ecf553/cancel", headers=ASYNC)
    assert cancel.status_code == 404


async def test_an_expired_task_is_unknown_to_its_owner_and_its_pictures_are_gone(world: Native) -> None:
    task_id = await submitted(world)
    await ended(world, task_id)
    assert list(world.settings.outputs_dir.rglob(f"{task_id}*"))
    long_ago = update(tasks).where(tasks.c.id == task_id).values(expires=1.0)
    await world.service.store.database.write(lambda connection: connection.execute(long_ago))
    for _ in range(2):  # expired, then cleaned away
        answer = await world.client.get(f"/api/v1/tasks/{task_id}", headers=ASYNC)
        assert answer.status_code == 200 and answer.json()["output"]["task_status"] == "UNKNOWN"
        await world.service.clean()
    assert not list(world.settings.outputs_dir.rglob(f"{task_id}*"))


async def test_another_users_task_is_as_one_that_never_was(world: Native) -> None:
    users = world.app.state.sd_cloud_access.users
    keys = {}
    for name in ("anna", "ben"):
        await users.table.add(name, role="user")
        await users.table.add_token(name, digest(name), "test", None)
        keys[name] = {"Authorization": f"Bearer {name}"}
    users._nobody_until = 0.0
    task_id = await submitted(world, **keys["anna"])
    path = f"/api/v1/tasks/{task_id}"
    assert (await world.client.get(path, headers=keys["anna"])).status_code == 200
    assert (await world.client.get(path, headers=keys["ben"])).status_code == 404
    assert (await world.client.post(f"{path}/cancel", headers=keys["ben"])).status_code == 404
    assert (await world.client.get("/api/v1/tasks", headers=keys["ben"])).json()["total"] == 0
    assert (await world.client.get("/api/v1/tasks", headers=keys["anna"])).json()["total"] == 1


async def test_tasks_of_the_other_dialects_are_visible_here_and_these_there(world: Native) -> None:
    here = await submitted(world)
    assert (await ended(world, here))["output"]["task_status"] == "SUCCEEDED"
    there = (await world.client.get(f"/tasks/{here}/result")).json()
    assert there["status"] == "succeeded" and len(there["images"]) == 4
    body = {"stable_diffusion_model": "first", "prompt": "a", "width": 64, "height": 64, "steps": 1}
    task_id = (await world.client.post("/txt2img", json=body)).json()["taskId"]
    assert (await ended(world, task_id))["output"]["task_status"] == "SUCCEEDED"


@pytest.mark.parametrize(
    "query", ["page_no=0", "page_size=1000", "status=DONE", "start_time=yesterday", "page_no=x"]
)
async def test_a_listing_checks_its_filters(world: Native, query: str) -> None:
    answer = await world.client.get(f"/api/v1/tasks?{query}", headers=ASYNC)
    assert answer.status_code == 400 and answer.json()["code"] == "InvalidParameter"


async def test_pages_of_a_listing_hold_each_task_once(world: Native) -> None:
    ids = {await submitted(world, {**GUIDE, "parameters": {"n": 1, "steps": 1}}) for _ in range(7)}
    seen = []
    for page in (1, 2, 3):
        answer = (await world.client.get(f"/api/v1/tasks?page_no={page}&page_size=3", headers=ASYNC)).json()
        assert (answer["total"], answer["total_page"]) == (7, 3)
        seen += [one["task_id"] for one in answer["data"]]
    assert len(seen) == 7 and set(seen) == ids


# -- words and models -----------------------------------------------------------------------------


def test_a_prompt_is_cut_at_75_words_in_either_script() -> None:
    assert within_limit("cat " * 75) == "cat " * 75
    assert within_limit("cat " * 100).split() == ["cat"] * 75
    assert within_limit("猫" * 100) == "猫" * 75
    assert within_limit("red 猫 " * 60).split() == (["red", "猫"] * 60)[:75]


def _weights(path: Path, *names: str) -> Checkpoint:
    header = json.dumps({name: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for name in names})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    return Checkpoint(path.name, path.name, str(path))


def test_a_model_name_is_the_first_checkpoint_of_its_base(tmp_path: Path) -> None:
    sd1 = _weights(tmp_path / "a.safetensors", "cond_stage_model.transformer.x", "model.diffusion_model.y")
    xl = _weights(tmp_path / "b.safetensors", "conditioner.embedders.0.x", "conditioner.embedders.1.y")
    large = _weights(tmp_path / "c.safetensors", "model.diffusion_model.joint_blocks.0.x")
    turbo = _weights(tmp_path / "d-turbo.safetensors", "model.diffusion_model.joint_blocks.0.x")
    every = Catalogue(checkpoints=(sd1, xl, large, turbo))
    choice = Choice(())
    chosen = {name: choice.checkpoint(model, every).name for name, model in MODELS.items()}
    assert chosen == {
        "stable-diffusion-v1.5": sd1.name,
        "stable-diffusion-xl": xl.name,
        "stable-diffusion-3.5-large": large.name,
        "stable-diffusion-3.5-large-turbo": turbo.name,
    }
    mapped = Choice((("stable-diffusion-xl", "c"), ("stable-diffusion-v1.5", "nothing")))
    assert mapped.checkpoint(MODELS["stable-diffusion-xl"], every).name == large.name
    with pytest.raises(CheckpointNotFound, match="nothing"):
        mapped.checkpoint(MODELS["stable-diffusion-v1.5"], every)


def test_any_checkpoint_will_do_when_there_is_no_other_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    only = _weights(tmp_path / "demo.safetensors", "cond_stage_model.transformer.x")
    choice = Choice(())
    for _ in range(2):
        assert choice.checkpoint(MODELS["stable-diffusion-xl"], Catalogue(checkpoints=(only,))) == only
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "demo.safetensors" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, struct.pack("<Q", 5) + b"nope!"])
def test_a_file_that_is_no_checkpoint_has_no_base(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert base_of(str(path)) is None and base_of(str(tmp_path / "absent.safetensors")) is None
