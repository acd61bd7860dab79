"""The demo checkpoints, served: what they are asked for is what comes, each request its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.cases import eas
from tests.e2e.serving import standalone
from tests.e2e.world import World, pictures_of

pytestmark = pytest.mark.engine

MODELS = Path(__file__).parents[2] / "demo" / "models"
#: What the card says that they are to be asked with.
AS_TRAINED = {"width": 64, "height": 64, "steps": 20, "cfg_scale": 3, "sampler_name": "Euler", "seed": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data_dir = tmp_path_factory.mktemp("demo")
    folders = ("--ckpt-dir", str(MODELS / "Stable-diffusion"), "--lora-dir", str(MODELS / "Lora"))
    with standalone(data_dir, *folders) as url:
        yield World(url, data_dir, links="", default_checkpoint="emoji")


def drawn(world: World, prompt: str, checkpoint: str = "emoji", **changes: Any) -> np.ndarray:
    body = {"alwayson_scripts": {"sd_model_checkpoint": checkpoint}, "prompt": prompt}
    [path] = pictures_of(eas(world, "txt2img", {**body, **AS_TRAINED, **changes}))
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=float)


def mean_of_ink(pixels: np.ndarray) -> np.ndarray:
    """The mean colour of what is not paper."""
    drawn_on = pixels.min(axis=2) < 200
    return pixels[drawn_on].mean(axis=0)


def test_a_red_apple_is_red_and_a_blue_car_is_blue(world: World) -> None:
    red, _, blue = mean_of_ink(drawn(world, "a red apple"))
    assert red > 2 * blue
    red, _, blue = mean_of_ink(drawn(world, "a blue car"))
    assert blue > 2 * red


def test_the_other_checkpoint_and_the_lora_draw_with_less_colour(world: World) -> None:
    colourful = drawn(world, "a house")
    ink = drawn(world, "a house", "ink")
    toned = drawn(world, "a house <lora:cyanotype:1>")

    def colourfulness(pixels: np.ndarray) -> float:
        return float((pixels.max(axis=2) - pixels.min(axis=2)).mean())

    assert colourfulness(ink) < colourfulness(colourful) / 2
    assert colourfulness(toned) < colourfulness(colourful) / 1.5
    assert np.abs(toned - ink).mean() > 3, "the LoRA is not the other checkpoint"
    assert np.array_equal(colourful, drawn(world, "a house")), "they left nothing behind"


def test_hires_fix_brings_it_to_a_size_to_look_at(world: World) -> None:
    hires = {"enable_hr": True, "hr_scale": 4, "hr_upscaler": "Lanczos", "denoising_strength": 0.0}
    assert drawn(world, "a rocket", **hires).shape == (256, 256, 3)
