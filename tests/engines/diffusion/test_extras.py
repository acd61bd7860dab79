"""The webui's extras: sizes, crops, blends, what html_info says, and what is refused."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd_cloud.engines.base import Control
from sd_cloud.engines.diffusion.extras import run_extras
from sd_cloud.errors import BadRequest, Cancelled, NotImplementedHere
from sd_cloud.job import Job, Outcome, Progress
from sd_cloud.settings import Settings, settings_below


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_below(tmp_path)


def picture(width: int = 40, height: int = 24, mode: str = "RGB") -> Image.Image:
    channels = {"RGB": 3, "RGBA": 4}[mode]
    return Image.fromarray(
        np.random.default_rng(2).integers(0, 256, (height, width, channels), dtype=np.uint8), mode
    )


def encoded(image: Image.Image, **text: str) -> str:
    about = PngInfo()
    for key, value in text.items():
        about.add_text(key, value)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=about)
    return base64.b64encode(buffer.getvalue()).decode()


def run(settings: Settings, payload: Mapping[str, Any], control: Control | None = None) -> Outcome:
    return run_extras(Job("extras", payload), lambda _: None, control or Control(), settings=settings)


def made(outcome: Outcome) -> Image.Image:
    image = outcome.pictures[0].image
    assert image is not None
    return image


def test_a_single_image_is_upscaled_by_a_factor(settings: Settings) -> None:
    image = picture()
    outcome = run(settings, {"image": encoded(image), "upscaling_resize": 2, "upscaler_1": "Lanczos"})
    assert made(outcome).tobytes() == image.resize((80, 48), Image.LANCZOS).tobytes()
    assert outcome.info == {"html_info": "<p>Postprocess upscale by: 2.0, Postprocess upscaler: Lanczos</p>"}


def test_without_an_upscaler_the_image_comes_back_as_it_is(settings: Settings) -> None:
    image = picture()
    outcome = run(settings, {"image": "data:image/png;base64," + encoded(image), "upscaling_resize": 4})
    assert made(outcome).tobytes() == image.tobytes()
    assert outcome.info == {"html_info": "<p></p>"}


@pytest.mark.parametrize(("crop", "size"), [(True, (64, 64)), (False, (104, 64))])
def test_to_a_size_with_and_without_crop(settings: Settings, crop: bool, size: tuple[int, int]) -> None:
    outcome = run(
        settings,
        {
            "image": encoded(picture()),
            "resize_mode": 1,
            "upscaling_resize_w": 64,
            "upscaling_resize_h": 64,
            "upscaling_crop": crop,
            "upscaler_1": "Nearest",
        },
    )
    assert made(outcome).size == size
    assert ("Postprocess crop to: 64x64" in outcome.info["html_info"]) is crop
    assert "Postprocess upscale to: 64x64" in outcome.info["html_info"]


def test_the_second_upscaler_shows_through_by_its_visibility(settings: Settings) -> None:
    image = picture()
    payload = {"image": encoded(image), "upscaler_1": "Nearest", "upscaler_2": "Lanczos"}
    outcome = run(settings, {**payload, "extras_upscaler_2_visibility": 0.25})
    nearest, lanczos = (image.resize((80, 48), how) for how in (Image.NEAREST, Image.LANCZOS))
    assert made(outcome).tobytes() == Image.blend(nearest, lanczos, 0.25).tobytes()
    assert outcome.info["html_info"].endswith("Postprocess upscaler 2: Lanczos</p>")


def test_transparency_is_kept_by_the_plain_upscalers(settings: Settings) -> None:
    assert (
        made(run(settings, {"image": encoded(picture(mode="RGBA")), "upscaler_1": "Lanczos"})).mode == "RGBA"
    )


def test_a_batch_is_done_one_by_one_and_keeps_generation_data(settings: Settings) -> None:
    seen: list[Progress] = []
    images = [{"data": encoded(picture(), parameters="a cat\nSteps: 1"), "name": "one.png"}]
    images.append({"data": encoded(picture(16, 16)), "name": "two.png"})
    job = Job("extras", {"imageList": images, "upscaler_1": "Nearest"})
    outcome = run_extras(job, seen.append, Control(), settings=settings)
    assert [one.image.size for one in outcome.pictures if one.image] == [(80, 48), (32, 32)]
    assert [(one.job_no, one.job_count) for one in seen] == [(0, 2), (1, 2)]
    assert [one.infotext for one in outcome.pictures] == ["a cat\nSteps: 1", ""]
    assert made(outcome).info["postprocessing"].startswith("Postprocess upscale by: 2.0")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"image": "no picture"}, "image"),
        ({"imageList": [{"data": "x", "name": "n"}]}, r"imageList\[0\]\.data"),
        ({"imageList": "x"}, "imageList"),
        ({"upscaler_1": "4x-none"}, "upscaler_1"),
        ({"upscaler_2": "4x-none"}, "upscaler_2"),
        ({"resize_mode": 2}, "resize_mode"),
        ({"upscaling_resize": 0}, "upscaling_resize"),
        ({"upscaling_resize": "2"}, "upscaling_resize"),
        ({"extras_upscaler_2_visibility": 1.5}, "extras_upscaler_2_visibility"),
        ({"upscaling_resize": 0.01, "upscaler_1": "Lanczos"}, "upscaler_1"),
    ],
)
def test_a_wrong_field_is_named(settings: Settings, change: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest, match=f"^{field}: "):
        run(settings, {"image": encoded(picture()), **change})


@pytest.mark.parametrize("name", ["gfpgan_visibility", "codeformer_visibility"])
def test_face_restoration_is_refused_by_name_and_zero_is_not(settings: Settings, name: str) -> None:
    run(settings, {"image": encoded(picture()), name: 0})
    with pytest.raises(NotImplementedHere, match=f"^{name}: .*spandrel"):
        run(settings, {"image": encoded(picture()), name: 0.5})


def test_cancelling_drops_and_interrupting_keeps(settings: Settings) -> None:
    images = [{"data": encoded(picture()), "name": str(n)} for n in range(3)]
    payload = {"imageList": images, "upscaler_1": "Lanczos"}

    cancelled = Control()
    cancelled.ask("cancel")
    with pytest.raises(Cancelled):
        run(settings, payload, cancelled)

    control = Control()
    asked = iter(["go", "go", "interrupt"])
    job = Job("extras", payload)
    outcome = run_extras(job, lambda _: control.ask(next(asked)), control, settings=settings)  # type: ignore[arg-type]
    assert outcome.interrupted and len(outcome.pictures) == 2


def test_skipping_goes_on_to_the_next_picture(settings: Settings) -> None:
    images = [{"data": encoded(picture(16 * (n + 1), 16)), "name": str(n)} for n in range(2)]
    control = Control()
    control.ask("skip")
    outcome = run(settings, {"imageList": images, "upscaler_1": "Lanczos"}, control)
    assert [one.image.width for one in outcome.pictures if one.image] == [64]
