"""The extension in stable-diffusion-webui-forge, as far as its differences from the webui matter to us."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from tests.e2e.world import pictures_of
from tests.webui.real import Host, Running, add_extension, webui
from tests.webui.test_censor import DETECTOR, is_blurred, opened

FORGE = Host(Path(os.environ.get("SD_FORGE_DIR") or "/nowhere"), ("--always-cpu", "--all-in-fp32"))
NO_FORGE = "needs stable-diffusion-webui-forge with its packages in venv/: set SD_FORGE_DIR to its folder"

pytestmark = [pytest.mark.engine, pytest.mark.skipif(not FORGE.folder.is_dir(), reason=NO_FORGE)]

SMALL = {"prompt": "a cat", "width": 64, "height": 64, "steps": 1, "seed": 4, "subseed": 4}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("data")
    script = Path(__file__).with_name("checkpoints.py")
    command = [str(FORGE.python), str(script), str(root), "--always-cpu"]
    folders = (".", "repositories/huggingface_guess", "packages_3rdparty")
    environment = {**os.environ, "PYTHONPATH": ":".join(str(FORGE.folder / one) for one in folders)}
    subprocess.run(command, cwd=FORGE.folder, env=environment, check=True)
    (root / "config.json").write_text(json.dumps({"sd_model_checkpoint": "forge-a.safetensors"}))
    add_extension(root)
    yield root
    shutil.rmtree(root / "models")  # 1.2 GB


@pytest.fixture(scope="module")
def running(data_dir: Path) -> Iterator[Running]:
    flags = (
        "--filebrowser",
        "--sd-dynamic-cache",
        "--min-ram-reserved",
        "1",
        "--always-hide-tabs",
        "PNG Info",
    )
    with webui(data_dir, *flags, ui=True, host=FORGE) as started:
        yield started


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as client:
        yield client


def asked(client: httpx.Client, body: dict[str, Any] | None = None, **scripts: str) -> dict[str, Any]:
    body = {**SMALL, "alwayson_scripts": {"save_dir": "forge", **scripts}, **(body or {})}
    answer = client.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def picture(answer: dict[str, Any]) -> tuple[bytes, str]:
    """Pixels and infotext."""
    with Image.open(pictures_of(answer)[-1]) as image:
        return image.convert("RGB").tobytes(), image.info["parameters"]


def test_each_request_gets_the_checkpoint_and_the_vae_it_names_and_nobody_else_sees_it(
    client: httpx.Client,
) -> None:
    before = client.get("/sdapi/v1/options").json()
    plain, told = picture(asked(client))
    assert "Model: forge-a" in told
    other, told = picture(asked(client, sd_model_checkpoint="forge-b.safetensors"))
    assert "Model: forge-b" in told and other != plain
    decoded, told = picture(asked(client, sd_vae="forge-vae.safetensors"))
    assert "Model: forge-a" in told and "Module 1: forge-vae" in told and decoded not in (plain, other)
    assert picture(asked(client, sd_vae="Automatic"))[0] == plain
    assert picture(asked(client))[0] == plain
    assert client.get("/sdapi/v1/options").json() == before


def test_a_native_request_after_ours_is_made_with_the_configured_checkpoint(client: httpx.Client) -> None:
    asked(client, sd_model_checkpoint="forge-b.safetensors", sd_vae="forge-vae.safetensors")
    native = client.post("/sdapi/v1/txt2img", json=SMALL).json()
    told = json.loads(native["info"])["infotexts"][0]
    assert "Model: forge-a" in told and "Module 1" not in told


def test_unknown_names_are_refused(client: httpx.Client) -> None:
    for scripts, name in (({"sd_model_checkpoint": "nope-1"}, "nope-1"), ({"sd_vae": "nope-2"}, "nope-2")):
        body = {**SMALL, "alwayson_scripts": {"save_dir": "forge", **scripts}}
        answer = client.post("/sdapi/v1/txt2img", json=body)
        assert answer.status_code == 404 and name in answer.json()["parameters"]["error_msg"]


def test_img2img_from_a_link_that_is_refused_and_from_base64(client: httpx.Client) -> None:
    native = client.post("/sdapi/v1/txt2img", json=SMALL).json()
    scripts = {"save_dir": "forge", "sd_model_checkpoint": "forge-b"}
    body = {**SMALL, "init_images": native["images"], "alwayson_scripts": scripts}
    answer = client.post("/sdapi/v1/img2img", json=body)
    assert answer.status_code == 200 and "Model: forge-b" in picture(answer.json())[1]
    scripts = {**scripts, "image_link": "http://169.254.169.254/"}
    assert client.post("/sdapi/v1/img2img", json={**SMALL, "alwayson_scripts": scripts}).status_code == 422


def test_a_second_switch_between_two_checkpoints_does_not_read_the_disk(
    client: httpx.Client, running: Running
) -> None:
    for _ in range(2):
        for name in ("forge-a", "forge-b"):
            asked(client, sd_model_checkpoint=name)
    for name in ("forge-a", "forge-b"):
        path = running.data_dir / f"models/Stable-diffusion/{name}.safetensors"
        assert f"Loading weights of {path} from RAM" in running.said


def test_our_tabs_are_in_its_page_and_hidden_ones_are_not(client: httpx.Client, running: Running) -> None:
    components = client.get("/config").json()["components"]
    labels = {one["props"].get("label") for one in components if one["type"] == "tabitem"}
    assert {"Jobs", "Files", "Extras"} <= labels and "PNG Info" not in labels
    assert client.get("/sd-cloud/pages/jobs.html").status_code == 200
    assert "sd-cloud-api:" not in running.said


def test_without_its_page_behind_api_auth_every_picture_is_checked(data_dir: Path, running: Running) -> None:
    """After the others: it waits for the memory of the Forge with a page."""
    running.stop()
    scripts = data_dir / "extensions" / "zz-detector" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "detector.py").write_text(DETECTOR)
    with webui(data_dir, "--enable-nsfw-censor", api_auth="anna:secret", host=FORGE) as started:
        with started.client() as client:
            native = client.post("/sdapi/v1/txt2img", json=SMALL).json()
            assert json.loads(native["info"])["extra_generation_params"]["nsfw_censored"] == [True]
            ours = asked(client, sd_model_checkpoint="forge-b")
            assert json.loads(ours["info"])["nsfw_censored"] == [True]
            for image in (opened(native["images"][0]), Image.open(pictures_of(ours)[0])):
                assert is_blurred(image)
            del client.headers["Authorization"]
            body = {**SMALL, "alwayson_scripts": {"save_dir": "forge"}}
            assert client.post("/sdapi/v1/txt2img", json=body).status_code == 401
        assert "sd-cloud-api:" not in started.said
