"""Preprocessors: what each draws, from pictures whose answer is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sd_cloud.engines.diffusion.preprocess.detect import Detection, Pixels, detect
from sd_cloud.engines.diffusion.preprocess.hed import Hed
from sd_cloud.engines.diffusion.preprocess.table import (
    MODULES,
    find_module,
    module_list,
    weight_free_names,
)
from sd_cloud.errors import CheckpointBroken, NotImplementedHere
from sd_cloud.settings import Settings, settings_below


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_below(tmp_path)


def square(size: int = 128) -> Pixels:
    """A white square on black."""
    image = np.zeros((size, size, 3), np.uint8)
    image[size // 4 : -size // 4, size // 4 : -size // 4] = 255
    return image


def noise(height: int = 96, width: int = 128) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def run(name: str, image: Pixels, settings: Settings, resolution: float = 128, **sliders: Any) -> Pixels:
    module = MODULES[name]
    detection = Detection(
        resolution, sliders.get("a", module.slider_1.value), sliders.get("b", module.slider_2.value), seed=7
    )
    return detect(module, image, detection, settings)


def test_canny_draws_the_outline_of_a_square(settings: Settings) -> None:
    drawn = run("canny", square(), settings)
    assert drawn.shape == (128, 128, 3) and set(np.unique(drawn)) == {0, 255}
    inside = drawn[40:88, 40:88]
    assert not inside.any() and not drawn[:28].any()
    assert 240 < (drawn[:, :, 0] > 0).sum() < 270  # four sides of 64 px


def test_thresholds_decide_what_canny_sees(settings: Settings) -> None:
    faint = (square() * 0.1).astype(np.uint8)
    assert not run("canny", faint, settings, a=200, b=250).any()
    assert run("canny", faint, settings, a=5, b=10).any()


def test_the_map_has_the_asked_resolution_on_its_shorter_side(settings: Settings) -> None:
    for name in ("canny", "threshold", "blur_gaussian", "scribble_xdog", "lineart_standard", "shuffle"):
        assert run(name, noise(96, 128), settings, resolution=192).shape == (192, 256, 3), name


def test_none_and_invert_leave_the_size(settings: Settings) -> None:
    image = noise()
    assert (run("none", image, settings) == image).all()
    assert (run("invert", image, settings) == 255 - image).all()


def test_threshold_compares_the_darkest_channel(settings: Settings) -> None:
    image = np.full((64, 64, 3), 200, np.uint8)
    image[:, 32:, 2] = 100
    drawn = run("threshold", image, settings, resolution=64, a=150)
    assert (drawn[:, :31] == 255).all() and (drawn[:, 33:] == 0).all()


def test_tile_resample_shrinks_by_its_rate(settings: Settings) -> None:
    image = noise(96, 128)
    assert (run("tile_resample", image, settings, a=1.0) == image).all()
    assert run("tile_resample", image, settings, a=2.0).shape == (48, 64, 3)


def test_recolor_gives_grey_and_gamma_darkens_it(settings: Settings) -> None:
    for name in ("recolor_luminance", "recolor_intensity"):
        plain, darker = (run(name, noise(), settings, a=gamma) for gamma in (1.0, 2.0))
        assert (plain[:, :, 0] == plain[:, :, 1]).all() and (plain[:, :, 0] == plain[:, :, 2]).all()
        assert darker.mean() < plain.mean()


def test_shuffle_follows_its_seed(settings: Settings) -> None:
    module = MODULES["shuffle"]
    image = noise(128, 128)
    first, again, other = (detect(module, image, Detection(128, seed=seed), settings) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any() and (first != image).any()


def test_the_colour_grid_has_one_colour_a_cell(settings: Settings) -> None:
    grid = run("color", noise(128, 192), settings, resolution=128)
    assert grid.shape == (128, 192, 3)
    assert len(np.unique(grid.reshape(-1, 3), axis=0)) == 6


def test_xdog_draws_dark_lines_white(settings: Settings) -> None:
    image = np.full((128, 128, 3), 255, np.uint8)
    image[62:66] = 0
    drawn = run("scribble_xdog", image, settings)
    assert drawn[63:65].all() and not drawn[:40].any()


def test_lineart_of_an_empty_page_is_empty(settings: Settings) -> None:
    assert not run("lineart_standard", np.full((64, 64, 3), 255, np.uint8), settings).any()


def test_a_transparent_picture_is_laid_over_white(settings: Settings) -> None:
    image = np.zeros((32, 32, 4), np.uint8)
    assert (run("tile_colorfix", image, settings) == 255).all()


@pytest.mark.parametrize("name", ["densepose", "depth_hand_refiner"])
def test_a_preprocessor_that_is_not_built_here_names_what_it_needs(settings: Settings, name: str) -> None:
    with pytest.raises(NotImplementedHere) as caught:
        detect(MODULES[name], square(), Detection(), settings, field="unit.module")
    message = str(caught.value)
    assert message.startswith("unit.module: ") and MODULES[name].weights in message and "canny" in message


def test_every_preprocessor_runs_or_names_what_it_lacks(settings: Settings) -> None:
    for name, module in MODULES.items():
        if module.weights:
            with pytest.raises(NotImplementedHere):
                run(name, square(), settings)
        else:
            assert run(name, square(), settings).dtype == np.uint8, name
    assert {"none", "canny", "tile_resample", "invert", "inpaint_only"} <= set(weight_free_names())


def test_soft_edges_in_levels_and_scribbles_come_from_the_same_network(settings: Settings) -> None:
    torch.manual_seed(0)
    path = settings.folders.annotators[0] / "hed" / "ControlNetHED.pth"
    path.parent.mkdir(parents=True)
    torch.save(Hed().state_dict(), path)
    soft, safe, scribble = (
        run(name, square(64), settings, resolution=64) for name in ("hed", "hed_safe", "scribble_hed")
    )
    assert soft.shape == safe.shape == scribble.shape == (64, 64, 3)
    assert len(np.unique(soft)) > len(np.unique(safe)) > 0 and len(np.unique(safe)) <= 4
    assert set(np.unique(scribble)) <= {0, 255}


def test_weights_of_another_network_are_named(settings: Settings) -> None:
    path = settings.folders.controlnets[0] / "ControlNetHED.pth"
    path.parent.mkdir(parents=True)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointBroken, match=r"ControlNetHED\.pth"):
        run("hed", square(64), settings)


def test_names_and_labels_both_find_a_preprocessor() -> None:
    assert find_module("depth") is find_module("depth_midas") is MODULES["depth"]
    assert find_module("lineart_standard (from white bg & black line)") is MODULES["lineart_standard"]
    assert find_module("cany") is None


def test_the_module_list_is_ordered_and_has_its_sliders() -> None:
    answer = module_list()
    names = answer["module_list"]
    assert names[0] == "none" and len(names) == len(set(names)) == len(MODULES)
    assert names.index("canny") < names.index("threshold")
    assert answer["module_detail"]["canny"] == {
        "model_free": False,
        "sliders": [
            {"name": "Resolution", "value": 512, "min": 64, "max": 2048, "step": 8},
            {"name": "Low Threshold", "value": 100, "min": 1, "max": 255, "step": 1},
            {"name": "High Threshold", "value": 200, "min": 1, "max": 255, "step": 1},
        ],
    }
    assert "depth_midas" in module_list(alias_names=True)["module_list"]


def test_detecting_without_weights_does_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from sd_cloud.engines.diffusion.preprocess.detect import *\n"
        "from sd_cloud.engines.diffusion.preprocess.table import MODULES\n"
        "from sd_cloud.settings import settings_below\n"
        f"settings = settings_below({str(tmp_path)!r})\n"
        "detect(MODULES['canny'], np.zeros((8, 8, 3), np.uint8), Detection(64, 1, 2), settings)\n"
        "try: detect(MODULES['hed'], np.zeros((8, 8, 3), np.uint8), Detection(64, 1, 2), settings)\n"
        "except Exception as error: print(error)\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ControlNetHED" in done.stdout
