"""--enable-nsfw-censor in the real webui, with a detector that always finds the middle of a picture."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.e2e.world import base64_of, png_of
from tests.webui.real import Running, data_dir, webui

pytestmark = pytest.mark.engine

SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 4, "subseed": 4}
#: Another extension, that takes the place of NudeNet.
DETECTOR = """
from sd_cloud.safety import censor

def always():
    def detect(image):
        return [censor.Region("FEMALE_BREAST_EXPOSED", 0.9, (16, 16, 48, 48))]
    return detect

censor.nudenet = always
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = data_dir(tmp_path_factory.mktemp("data"))
    scripts = root / "extensions" / "zz-detector" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "detector.py").write_text(DETECTOR)
    with webui(root, "--enable-nsfw-censor") as started:
        yield started


def is_blurred(image: Image.Image) -> bool:
    """Neighbouring pixels of the middle are nearly the same, those of the rim are not."""
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    change = np.abs(np.diff(pixels, axis=1)).mean(axis=2)
    middle, rim = change[20:44, 20:44].mean(), change[:10, :].mean()
    return bool(middle < rim / 4)


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_native_pictures_are_blurred_where_they_are_returned_and_where_they_are_saved(
    running: Running,
) -> None:
    with running.client() as client:
        body = {"prompt": "a cat", "n_iter": 2, "save_images": True, **SMALL}
        answer = client.post("/sdapi/v1/txt2img", json=body).json()
    images = [opened(one) for one in answer["images"]]
    info = json.loads(answer["info"])
    assert info["extra_generation_params"]["nsfw_censored"] == [True, True]
    assert len(images) == 3 and all(is_blurred(one) for one in images[1:])
    assert all("NSFW censored: blurred" in one for one in info["infotexts"][1:])
    saved = sorted((running.data_dir / "outputs/txt2img-images").rglob("*.png"))
    assert len(saved) == 2 and all(is_blurred(Image.open(one)) for one in saved)
    assert all(is_blurred(opened(one)) for one in answer["images"][1:])


def test_pictures_of_our_jobs_are_blurred_and_the_answer_says_which(running: Running) -> None:
    with running.client() as client:
        body = {"prompt": "a cat", "alwayson_scripts": {"save_dir": "ours"}, **SMALL}
        answer = client.post("/sdapi/v1/txt2img", json=body).json()
    assert json.loads(answer["info"])["nsfw_censored"] == [True]
    assert is_blurred(Image.open(Path(answer["parameters"]["image_url"])))


def test_pictures_of_extras_are_blurred(running: Running) -> None:
    with running.client() as client:
        plain = client.post("/sdapi/v1/txt2img", json={"prompt": "a cat", **SMALL}).json()["images"][0]
        body = {"image": plain, "upscaler_1": "None", "upscaling_resize": 1}
        answer = client.post("/sdapi/v1/extra-single-image", json=body)
        assert answer.status_code == 200 and is_blurred(opened(answer.json()["image"]))
        body = {"image": base64_of(png_of(64, 64)), "upscaler_1": "None", "upscaling_resize": 1}
        answer = client.post("/sdapi/v1/extra-single-image", json=body)
        assert opened(answer.json()["image"]).getpixel((32, 17)) != opened(body["image"]).getpixel((32, 17))
