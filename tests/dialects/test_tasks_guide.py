"""What the serverless guide prints: each field of its requests, its samples, models from OSS and links."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sd_cloud.settings import OssSettings
from tests.dialects.sdapi_world import Native, base64_png, native
from tests.inputs.servers import Conversation, serving
from tests.outputs.oss_server import KEY_ID, KEY_SECRET, serving_oss

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
#: The guide's placeholders, and examples beyond the webui's own ranges -> what this service has.
OURS: dict[str, Any] = {
    "stable_diffusion_model": "first", "sd_vae": "soft.pt", "save_dir": "here", "sampler_name": "Euler a",
    "sampler_index": "Euler", "hr_sampler_name": "DDIM", "hr_upscaler": "Latent", "upscaler_1": "Lanczos",
    "upscaler_2": "None", "subseed_strength": 0.5, "inpainting_fill": 1, "batch_size": 2, "n_iter": 2,
    "override_settings": {"jpeg_quality": 70}, "script_name": "", "script_args": [], "styles": [],
}  # fmt: skip
#: Told to the service, not part of the native payload.
APART = {"stable_diffusion_model", "sd_vae", "save_dir"}


def reference(name: str) -> str:
    path = REFERENCE / name
    if not path.exists():
        pytest.skip(f"the guide's {name} is not beside this checkout (../shared)")
    return path.read_text()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Native]:
    async with native(tmp_path) as one:
        yield one


def example(schema: dict[str, Any]) -> Any:
    """A property's example; those of the extras are written as text, with alternatives."""
    given = schema["example"]
    text = given.split("|")[0] if isinstance(given, str) else given
    kinds: dict[str, Any] = {"integer": int, "number": float, "boolean": lambda t: t in (True, "true")}
    return kinds.get(schema["type"], lambda same: given)(text)


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/txt2img", "Txt2ImgRequest"), ("/img2img", "Img2ImgRequest"),
        ("/extra_images", "ExtraImagesRequest"),
    ],
)  # fmt: skip
async def test_every_field_of_a_request_is_taken(world: Native, path: str, schema: str) -> None:
    import yaml

    properties = yaml.safe_load(reference("serverless-api.yaml"))["components"]["schemas"][schema][
        "properties"
    ]
    body = {name: OURS.get(name, example(one)) for name, one in properties.items()}
    pictures = {"init_images": [base64_png(64)], "mask": base64_png(64), "image": base64_png(16)}
    body |= {name: pictures[name] for name in pictures.keys() & body.keys()}
    if "alwayson_scripts" in body:
        body["alwayson_scripts"] = {}
    if path != "/extra_images":
        body |= {"width": 64, "height": 64, "steps": 2}
    answer = await world.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    job = world.job
    assert body.keys() - APART - {"override_settings"} <= job.payload.keys() | {"stable_diffusion_model"}
    # `save_images` decides what is saved, as in the webui's own API; a script of no name is none.
    decided = {"override_settings", "script_name", "do_not_save_samples", "do_not_save_grid"}
    for name in body.keys() - APART - pictures.keys() - decided:
        assert job.payload[name] == body[name], name
    if path != "/extra_images":
        assert (job.checkpoint, job.vae) == ("first.safetensors", "soft.pt")
        assert job.payload["override_settings"]["jpeg_quality"] == 70
        assert len(answer.json()["images"]) == 4
        assert all("/here/" in one.as_posix() for one in world.settings.outputs_dir.rglob("*_4.png"))


def samples(text: str, path: str) -> dict[str, Any]:
    """The JSON body that the guide prints after ``POST <path>``: with comments and Python's words in it."""
    begin = text.index("{", text.index(f"POST {path}"))
    printed = text[begin : text.index("\n}\n", begin) + 2]
    bare = re.sub(r"\s//[^\n]*", "", printed).replace("True", "true").replace("False", "false")
    return dict(json.loads(bare.replace('"image":self.file_to_base64(),', "")))


@pytest.mark.parametrize("path", ["/txt2img", "/img2img", "/extra_images"])
async def test_the_guides_samples_are_answered_in_its_shape(world: Native, path: str) -> None:
    body = samples(reference("serverless-sd-api.txt"), path)
    body |= {name: OURS[name] for name in OURS.keys() & body.keys()}
    body |= {"width": 64, "height": 64, "steps": 2, "n_iter": 1} if path != "/extra_images" else {}
    for name, value in (("init_images", [base64_png(64)] * 2), ("mask", base64_png(64))):
        if name in body:
            body[name] = value
    if path == "/extra_images":
        body["image"] = base64_png(16)
    else:
        # Its unit wants a ControlNet model, which this engine has none of: that is said by name.
        refused = await world.client.post(path, json=body)
        assert refused.status_code in (400, 404) and "control" in refused.json()["message"], refused.text
        body["alwayson_scripts"]["controlnet"]["args"][0]["enabled"] = False
        body["alwayson_scripts"]["controlnet"]["args"][0]["image"] = base64_png(64)
    answer = await world.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() >= {"status", "taskId", "ossUrl"} and answer.json()["status"] == "succeeded"
    picture = await world.client.get(httpx.URL(answer.json()["ossUrl"][0]).raw_path.decode())
    assert picture.content.startswith(b"\x89PNG")


async def test_an_error_names_the_field_as_this_api_calls_it(world: Native) -> None:
    body = {"stable_diffusion_model": "first", "prompt": "a", "width": 64, "height": 64, "steps": 1}
    for field, value in (("stable_diffusion_model", "third"), ("sd_vae", "no such VAE")):
        refused = await world.client.post("/txt2img", json={**body, field: value})
        assert refused.status_code == 404 and refused.json()["message"].startswith(f"{field}: "), refused.text


async def test_a_picture_may_be_a_link(tmp_path: Path) -> None:
    import base64

    data = base64.b64decode(base64_png(64))

    async def picture(asked: Conversation) -> None:
        await asked.answer(body=data, Content_Type="image/png")

    async with serving(picture) as server, native(tmp_path, image_link_allow=("127.0.0.1",)) as world:
        link = f"http://127.0.0.1:{server.port}/a.png"
        body = {"stable_diffusion_model": "first", "prompt": "a", "width": 64, "height": 64, "steps": 1}
        made = await world.client.post("/img2img", json={**body, "init_images": [link], "mask": link})
        assert made.status_code == 200, made.text
        enlarged = await world.client.post(
            "/extra_images", json={"resize_mode": 0, "upscaler_1": "Lanczos", "image": link}
        )
        assert enlarged.status_code == 200, enlarged.text
        assert len(server.seen) == 3


# -- models ---------------------------------------------------------------------------------------

WEIGHTS = b"weights of a LoRA"
MD5 = hashlib.md5(WEIGHTS).hexdigest()
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


async def test_a_model_is_registered_from_oss_when_its_digest_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", KEY_SECRET)
    with serving_oss() as oss:
        oss.objects["models/lora/given.safetensors"] = WEIGHTS
        settings = OssSettings(allow=("models",), endpoint=oss.endpoint)
        async with native(tmp_path, oss=settings) as world:
            body = {"type": "lora", "name": "mine", "ossPath": "oss://models/lora/given.safetensors"}
            folder = world.settings.folders.loras[0]
            for etag in ("0" * 32, "0" * 64):
                wrong = await world.client.post("/models", json={**body, "etag": etag})
                assert wrong.status_code == 400 and "etag" in wrong.json()["message"]
                assert not list(folder.iterdir())
            for etag in (f'"{MD5.upper()}"', SHA256):
                right = await world.client.post("/models", json={**body, "etag": etag})
                assert right.status_code == 200, right.text
                assert right.json()["etag"] == etag.strip('"').lower()
            assert (folder / "mine.safetensors").read_bytes() == WEIGHTS
            listed = (await world.client.get("/models/mine.safetensors")).json()
            assert (listed["type"], listed["ossPath"]) == ("lora", body["ossPath"])
            absent = await world.client.post("/models", json={**body, "ossPath": "oss://models/lora/none.pt"})
            assert absent.status_code == 424 and "ossPath" in absent.json()["message"]
            assert (folder / "mine.safetensors").read_bytes() == WEIGHTS  # what was there stays


async def test_a_model_is_registered_from_a_link_and_its_status_is_told_meanwhile(tmp_path: Path) -> None:
    import asyncio

    release = asyncio.Event()

    async def slow(asked: Conversation) -> None:
        await release.wait()
        await asked.answer(body=WEIGHTS)

    async with serving(slow) as server, native(tmp_path, image_link_allow=("127.0.0.1",)) as world:
        link = f"http://127.0.0.1:{server.port}/x.safetensors?token=1"
        body = {"type": "lora", "name": "linked", "ossPath": link, "etag": SHA256}
        begun = await world.client.post("/models", json=body, headers={"Request-Type": "async"})
        assert begun.status_code == 200 and begun.json()["status"] == "registering", begun.text
        path = "/models/linked.safetensors"
        assert (await world.client.get(path)).json()["status"] == "registering"
        release.set()
        while (await world.client.get(path)).json()["status"] == "registering":
            await asyncio.sleep(0.01)
        assert (await world.client.get(path)).json()["status"] == "unloaded"
        assert (world.settings.folders.loras[0] / "linked.safetensors").read_bytes() == WEIGHTS


# -- log in ---------------------------------------------------------------------------------------


async def test_log_in_is_json_for_us_and_a_form_for_the_page(tmp_path: Path) -> None:
    async with native(tmp_path, nowebui=False) as world:
        given = {"userName": "root", "password": "x"}
        ours = await world.client.post("/login", json=given)
        assert ours.status_code == 401 and ours.json()["code"] == 401
        page = await world.client.post("/login", data={"username": "root", "password": "x"})
        assert "code" not in page.text and page.status_code != 404, page.text
