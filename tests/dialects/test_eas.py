from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from starlette.requests import Request

from sd_cloud import errors
from sd_cloud.access import Access
from sd_cloud.app import attach
from sd_cloud.dialects import eas
from sd_cloud.inputs import Inputs
from sd_cloud.outputs import Outputs
from sd_cloud.service import Service
from sd_cloud.settings import Settings, settings_below
from sd_cloud.store.memory import MemoryStore
from tests.e2e.world import base64_of, png_of
from tests.fakes import PaintEngine


class Native(BaseModel):
    """As much of the webui's own request model as these tests need."""

    prompt: str = ""
    negative_prompt: str = ""
    steps: int = 1
    seed: int = -1
    width: int = 64
    height: int = 64
    n_iter: int = 1
    batch_size: int = 1
    save_images: bool = False
    init_images: list | None = None
    override_settings: dict | None = None
    alwayson_scripts: dict = {}


async def password(request: Request) -> None:
    if request.headers.get("x-password") != "right":
        raise HTTPException(401, "wrong password")


def native_app(dependencies: Any = ()) -> FastAPI:
    """An app that serves the native routes and tells what reached them."""
    app = FastAPI()

    async def echo(request: Request, asked: Native) -> dict[str, Any]:
        return {"native": (await request.body()).decode(), "prompt": asked.prompt}

    echo.__annotations__ = {"request": Request, "asked": Native}
    for path in eas.ROUTES:
        app.add_api_route(path, echo, methods=["POST"], dependencies=list(dependencies))
    return app


class Asked:
    def __init__(self, app: FastAPI, service: Service, engine: PaintEngine, settings: Settings) -> None:
        self.app, self.service, self.engine, self.settings = app, service, engine, settings

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"Content-Type": "application/json", **options.pop("headers", {})}
            return await client.post(path, content=content, headers=headers, **options)


def asked_of(tmp_path: Path, app: FastAPI, **service_options: Any) -> Asked:
    settings = settings_below(tmp_path, no_auth=True)
    engine = PaintEngine()
    service = Service(
        engine,
        store=MemoryStore(),
        inputs=Inputs(settings),
        outputs=Outputs(settings),
        **service_options,
    )
    attach(app, service, settings, access=Access(settings))
    return Asked(app, service, engine, settings)


@pytest.fixture
async def asked(tmp_path: Path) -> AsyncIterator[Asked]:
    asked = asked_of(tmp_path, native_app())
    yield asked
    await asked.service.stop()


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "a cat", "steps": 3}',
        b'{ "prompt":"a cat" ,"alwayson_scripts":{"controlnet":{"args":[{"model":"m"}]}}}',
        b'{"prompt": "the words \\"save_dir\\" and \\"uid\\" alone mean nothing"}',
    ],
)
async def test_a_request_without_our_keys_reaches_the_native_handler_byte_for_byte(
    asked: Asked, body: bytes
) -> None:
    answer = await asked.post("/sdapi/v1/txt2img", body)
    assert answer.status_code == 200 and answer.json()["native"].encode() == body
    assert not asked.engine.started


async def test_what_is_not_json_is_the_native_handlers_to_refuse(asked: Asked) -> None:
    answer = await asked.post("/sdapi/v1/txt2img", b'{"save_dir": ')
    assert answer.status_code == 422 and "detail" in answer.json()


async def test_the_answer_has_the_guides_shape(asked: Asked) -> None:
    scripts = {"sd_model_checkpoint": "second", "save_dir": "a/b", "id_task": "14837", "uid": 123}
    body = {"alwayson_scripts": scripts, "prompt": "girls", "n_iter": 2, "seed": 10}
    answer = await asked.post("/sdapi/v1/txt2img", body)
    assert answer.status_code == 200
    content = answer.json()
    assert content["images"] == [] and set(content) == {"images", "parameters", "info"}
    told = content["parameters"]
    assert told["status"] == 0 and told["error_msg"] == "" and told["image_mask_url"] == ""
    assert told["id_task"] == "14837" and told["uid"] == "123" and told["seed"] == "10,11"
    paths = [Path(one) for one in told["image_url"].split(",")]
    assert [p.parts[-3] for p in paths] == ["txt2img-grids", "txt2img-images", "txt2img-images"]
    assert all(p.is_file() for p in paths) and len(told["image_links"]) == 3
    info = json.loads(content["info"])
    assert info["hostname"] and info["all_seeds"] == [10, 11]
    [job] = asked.engine.started
    assert job.checkpoint == "second.safetensors" and job.labels == {"id_task": "14837", "uid": "123"}
    assert not set(eas.KEYS) & set(job.payload["alwayson_scripts"])


async def test_the_checkpoint_of_override_settings_yields_to_ours(asked: Asked) -> None:
    override = {"sd_model_checkpoint": "first", "sd_vae": "None", "CLIP_stop_at_last_layers": 2}
    body = {"alwayson_scripts": {"sd_model_checkpoint": "second"}, "override_settings": override}
    assert (await asked.post("/sdapi/v1/txt2img", body)).status_code == 200
    [job] = asked.engine.started
    assert job.checkpoint == "second.safetensors" and job.vae == "None"
    assert job.payload["override_settings"] == {"CLIP_stop_at_last_layers": 2}


async def test_a_picture_given_as_base64_beside_our_keys_reaches_the_engine(asked: Asked) -> None:
    picture = base64_of(png_of())
    body = {"alwayson_scripts": {"save_dir": "x"}, "init_images": [f"data:image/png;base64,{picture}"]}
    assert (await asked.post("/sdapi/v1/img2img", body)).status_code == 200
    [job] = asked.engine.started
    assert base64.b64decode(job.payload["init_images"][0]) == png_of()


@pytest.mark.parametrize(
    ("path", "body", "http", "status", "words"),
    [
        ("txt2img", {"alwayson_scripts": {"sd_model_checkpoint": "x"}}, 404, 3, "sd_model_checkpoint: no"),
        ("txt2img", {"alwayson_scripts": {"sd_vae": 3}}, 422, 1, "alwayson_scripts.sd_vae"),
        ("txt2img", {"alwayson_scripts": {"save_dir": "/etc"}}, 422, 1, "save_dir"),
        ("txt2img", {"alwayson_scripts": {"save_dir": "x"}, "steps": "many"}, 422, 1, "steps"),
        ("txt2img", {"alwayson_scripts": {"image_link": "http://x.y/a.png"}}, 422, 1, "/sdapi/v1/img2img"),
        ("txt2img", {"alwayson_scripts": {"save_dir": "x"}, "prompt": "fail"}, 500, 4, "asked to fail"),
        ("img2img", {"alwayson_scripts": {"save_dir": "x"}}, 422, 1, "init_images"),
        ("img2img", {"alwayson_scripts": {"image_link": "http://127.0.0.1/a.png"}}, 422, 1, "image_link"),
        ("img2img", {"alwayson_scripts": {"image_link": "file:///etc/passwd"}}, 422, 1, "image_link"),
    ],
)
async def test_an_error_keeps_the_guides_shape(
    asked: Asked, path: str, body: dict[str, Any], http: int, status: int, words: str
) -> None:
    body["alwayson_scripts"]["id_task"] = "7"
    answer = await asked.post(f"/sdapi/v1/{path}", body)
    told = answer.json()["parameters"]
    assert (answer.status_code, told["status"]) == (http, status), answer.text
    assert words in told["error_msg"] and told["id_task"] == "7" and told["image_url"] == ""
    assert answer.json()["images"] == []
    good = await asked.post("/sdapi/v1/txt2img", {"alwayson_scripts": {"uid": "1"}})
    assert good.status_code == 200, "the next request is served"


async def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    asked = asked_of(tmp_path, native_app(), queue_limit=0)
    answer = await asked.post("/sdapi/v1/txt2img", {"alwayson_scripts": {"uid": "1"}})
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
    assert answer.json()["parameters"]["status"] == errors.QueueFull.eas_status


async def test_the_native_routes_own_auth_stays_in_front_of_us(tmp_path: Path) -> None:
    asked = asked_of(tmp_path, native_app([Depends(password)]))
    for body in ({"prompt": "native"}, {"alwayson_scripts": {"uid": "1"}}):
        assert (await asked.post("/sdapi/v1/txt2img", body)).status_code == 401
        good = await asked.post("/sdapi/v1/txt2img", body, headers={"x-password": "right"})
        assert good.status_code == 200
    await asked.service.stop()


async def test_attaching_twice_wraps_once(tmp_path: Path) -> None:
    app = native_app()
    asked = asked_of(tmp_path, app)
    attach(app, asked.service, asked.settings, access=Access(asked.settings))
    await asked.post("/sdapi/v1/txt2img", {"alwayson_scripts": {"uid": "1"}})
    assert len(asked.engine.started) == 1
    await asked.service.stop()


async def test_the_schema_of_the_native_routes_stays(tmp_path: Path) -> None:
    bare = native_app().openapi()["paths"]["/sdapi/v1/txt2img"]
    assert asked_of(tmp_path, native_app()).app.openapi()["paths"]["/sdapi/v1/txt2img"] == bare


def test_every_error_has_its_own_documented_status() -> None:
    page = (Path(__file__).parents[2] / "docs" / "eas.md").read_text()
    for kind in errors.ServiceError.__subclasses__():
        assert f"| {kind.eas_status} " in page, f"{kind.__name__} is not in docs/eas.md"
