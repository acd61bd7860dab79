"""ControlNet through the whole engine: the picture, its text, the maps, and what is refused."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sd_cloud.engines.base import Control
from sd_cloud.engines.diffusion.engine import DiffusionWorker
from sd_cloud.engines.diffusion.weights_file import read_tensors
from sd_cloud.errors import BadRequest, CheckpointNotFound, NotImplementedHere
from sd_cloud.job import Job, Outcome
from sd_cloud.settings import Settings, settings_below

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden" / "checkpoints"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs shared/golden beside the repository")

UNET = "model.diffusion_model."
HINT = [(3, 16), (16, 16), (16, 32), (32, 32), (32, 96), (96, 96), (96, 256), (256, 32)]
WIDTHS = [32, 32, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128]


def controlnet(strength: float) -> dict[str, torch.Tensor]:
    """A ControlNet for tiny-a: its encoder, a random hint, zero convolutions of the given strength."""
    random = torch.Generator().manual_seed(1)
    tensors = read_tensors(GOLDEN / "tiny-a.safetensors")
    own = {key[len(UNET) :]: value for key, value in tensors.items() if key.startswith(UNET)}
    made = {
        f"control_model.{key}": value
        for key, value in own.items()
        if key.startswith(("time_embed.", "input_blocks.", "middle_block."))
    }
    for place, (before, after) in enumerate(HINT):
        weight = torch.randn(after, before, 3, 3, generator=random) * (2.0 / (before * 9)) ** 0.5
        made[f"control_model.input_hint_block.{2 * place}.weight"] = weight * 2
        made[f"control_model.input_hint_block.{2 * place}.bias"] = torch.zeros(after)
    zeros = [(f"zero_convs.{place}.0", width) for place, width in enumerate(WIDTHS)]
    for name, width in [*zeros, ("middle_block_out.0", 128)]:
        made[f"control_model.{name}.weight"] = torch.eye(width)[:, :, None, None] * strength
        made[f"control_model.{name}.bias"] = torch.zeros(width)
    return {key: value.contiguous().clone() for key, value in made.items()}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    found = settings_below(tmp_path_factory.mktemp("data"), min_ram_reserved_gib=0.0)
    for folder in (found.folders.checkpoints[0], found.folders.controlnets[0]):
        folder.mkdir(parents=True)
    for name in ("tiny-a.safetensors", "tiny-a.yaml", "tiny-sdxl.safetensors", "tiny-sdxl.yaml"):
        (found.folders.checkpoints[0] / name).symlink_to(GOLDEN / name)
    save_file(controlnet(0.0), found.folders.controlnets[0] / "control_zero.safetensors")
    save_file(controlnet(0.3), found.folders.controlnets[0] / "control_v11p_sd15_canny.safetensors")
    return found


@pytest.fixture(scope="module")
def worker(settings: Settings) -> DiffusionWorker:
    return DiffusionWorker(settings)


def photo(width: int = 96, height: int = 64) -> str:
    image = Image.new("RGB", (width, height), "white")
    image.paste((20, 40, 60), (width // 4, height // 4, width * 3 // 4, height * 3 // 4))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def unit(**changes: Any) -> dict[str, Any]:
    return {
        "image": photo(),
        "enabled": True,
        "module": "canny",
        "model": "control_v11p_sd15_canny",
        "weight": 1,
        "processor_res": 64,
        "threshold_a": 100,
        "threshold_b": 200,
        **changes,
    }


def make(worker: DiffusionWorker, *units: dict[str, Any], kind: str = "txt2img", **fields: Any) -> Outcome:
    payload = {
        "prompt": "a red cat",
        "negative_prompt": "dog",
        "steps": 4,
        "width": 64,
        "height": 64,
        "seed": 11,
        "sampler_name": "Euler",
        **fields,
    }
    if units:
        payload["alwayson_scripts"] = {"controlnet": {"args": list(units)}}
    return worker.run(Job(kind, payload), lambda _: None, Control())  # type: ignore[arg-type]


def pixels(outcome: Outcome) -> np.ndarray[Any, Any]:
    image = outcome.of_role("image")[0].image
    assert image is not None
    return np.asarray(image).astype(int)


def test_zero_convolutions_make_the_picture_without_controlnet(worker: DiffusionWorker) -> None:
    plain = pixels(make(worker))
    assert (pixels(make(worker, unit(model="control_zero"))) == plain).all()
    assert (pixels(make(worker, unit())) != plain).any()


def test_a_window_that_holds_no_step_changes_nothing(worker: DiffusionWorker) -> None:
    plain = pixels(make(worker))
    assert (pixels(make(worker, unit(guidance_start=0.9, guidance_end=1.0))) == plain).all()
    early = pixels(make(worker, unit(guidance_end=0.2)))
    whole = pixels(make(worker, unit()))
    assert (early != plain).any() and (early != whole).any()


def test_weight_modes_and_images_all_matter(worker: DiffusionWorker) -> None:
    made = [
        pixels(make(worker, unit(**changes)))
        for changes in (
            {},
            {"weight": 0.5},
            {"control_mode": "My prompt is more important"},
            {"control_mode": 2},
            {"image": photo(64, 128)},
        )
    ]
    assert all((one != other).any() for place, one in enumerate(made) for other in made[place + 1 :])


def test_the_map_follows_the_pictures_and_the_text_says_what_was_done(worker: DiffusionWorker) -> None:
    outcome = make(worker, unit(pixel_perfect=True), batch_size=2)
    assert [one.role for one in outcome.pictures] == ["image", "image", "control_map"]
    drawn = outcome.pictures[-1].image
    assert drawn is not None and drawn.size == (64, 64)
    assert set(np.unique(np.asarray(drawn))) == {0, 255}
    said = (
        "Module: canny, Model: control_v11p_sd15_canny, Weight: 1.0, Resize Mode: Crop and Resize, "
        "Processor Res: 64, Threshold A: 100.0, Threshold B: 200.0, Guidance Start: 0.0, "
        "Guidance End: 1.0, Pixel Perfect: True, Control Mode: Balanced"
    )
    assert f'ControlNet 0: "{said}"' in outcome.pictures[0].infotext
    assert len(outcome.info["infotexts"]) == 2


def test_two_units_work_together(worker: DiffusionWorker) -> None:
    second = unit(module="none", image=photo(64, 64), weight=0.5)
    outcome = make(worker, unit(), second)
    assert (pixels(outcome) != pixels(make(worker, unit()))).any()
    assert len(outcome.of_role("control_map")) == 2
    assert 'ControlNet 1: "Module: none' in outcome.pictures[0].infotext


def test_batches_of_several_pictures_get_the_same_control(worker: DiffusionWorker) -> None:
    together = make(worker, unit(), batch_size=2)
    alone = make(worker, unit(), seed=12)
    image = together.of_role("image")[1].image
    assert image is not None
    assert np.abs(np.asarray(image).astype(int) - pixels(alone)).max() <= 2


def test_img2img_lends_its_image_to_a_unit_without_one(worker: DiffusionWorker) -> None:
    bare = {key: value for key, value in unit().items() if key != "image"}
    source = {"init_images": [photo()], "denoising_strength": 0.7}
    outcome = make(worker, bare, kind="img2img", **source)
    assert (pixels(outcome) != pixels(make(worker, kind="img2img", **source))).any()
    with pytest.raises(BadRequest, match=r"^alwayson_scripts\.controlnet\.args\[0\]\.image: "):
        make(worker, bare)


def test_inpainting_cuts_maps_to_the_region(worker: DiffusionWorker) -> None:
    mask = Image.new("L", (96, 64))
    mask.paste(255, (16, 16, 48, 48))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    fields = {
        "init_images": [photo()],
        "mask": base64.b64encode(buffer.getvalue()).decode(),
        "inpaint_full_res": True,
        "inpaint_full_res_padding": 8,
        "denoising_strength": 0.8,
    }
    cut = make(worker, unit(module="tile_resample"), kind="img2img", **fields)
    whole = make(
        worker, unit(module="tile_resample", inpaint_crop_input_image=False), kind="img2img", **fields
    )
    maps = [np.asarray(one.of_role("control_map")[0].image) for one in (cut, whole)]
    assert maps[0].shape == maps[1].shape == (64, 64, 3) and (maps[0] != maps[1]).any()


def test_hires_fix_controls_both_passes_with_a_map_for_each(worker: DiffusionWorker) -> None:
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    outcome = make(worker, unit(), **hires)
    assert [one.image.size for one in outcome.of_role("control_map") if one.image] == [(96, 96), (64, 64)]
    only_first = make(worker, unit(hr_option="Low res only"), **hires)
    assert (pixels(outcome) != pixels(only_first)).any()


@pytest.mark.parametrize("module", ["tile_colorfix", "tile_colorfix+sharp", "recolor_luminance", "shuffle"])
def test_preprocessors_that_do_more_than_draw_run_through(worker: DiffusionWorker, module: str) -> None:
    one = unit(module=module, threshold_a=-1, threshold_b=-1)
    assert (pixels(make(worker, one)) != pixels(make(worker))).any()
    assert (pixels(make(worker, one)) == pixels(make(worker, one))).all()


def test_inpaint_only_keeps_the_units_picture_outside_its_mask(worker: DiffusionWorker) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (40, 0, 64, 64))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    source = photo(64, 64)
    one = unit(module="inpaint_only", image=source, mask=base64.b64encode(buffer.getvalue()).decode())
    kept = np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))).astype(int)
    made = pixels(make(worker, one))
    assert np.abs(made[:, :32] - kept[:, :32]).max() <= 1
    assert (made[:, 52:] != kept[:, 52:]).any()


@pytest.mark.parametrize("sampler", ["DDIM", "DPM++ 2M", "UniPC"])
def test_every_kind_of_sampler_is_steered(worker: DiffusionWorker, sampler: str) -> None:
    plain = pixels(make(worker, sampler_name=sampler))
    assert (pixels(make(worker, unit(), sampler_name=sampler)) != plain).any()
    assert (pixels(make(worker, unit(model="control_zero"), sampler_name=sampler)) == plain).all()


def test_disabled_units_do_nothing(worker: DiffusionWorker) -> None:
    outcome = make(worker, unit(enabled=False))
    assert (pixels(outcome) == pixels(make(worker))).all() and "ControlNet" not in outcome.pictures[
        0
    ].infotext


@pytest.mark.parametrize(
    ("changes", "error", "fact"),
    [
        ({"model": "control_openpose"}, CheckpointNotFound, r"model: .*control_zero \["),
        ({"module": "openpose_full"}, NotImplementedHere, r"module: .*openpose/body_pose_model\.pth"),
        ({"module": "cany"}, BadRequest, "module: no preprocessor"),
        ({"model": "None"}, BadRequest, "model: a unit needs a model"),
    ],
)
def test_what_cannot_be_served_is_named_and_the_next_job_runs(
    worker: DiffusionWorker, changes: dict[str, Any], error: type[Exception], fact: str
) -> None:
    with pytest.raises(error, match=rf"^alwayson_scripts\.controlnet\.args\[0\]\.{fact}"):
        make(worker, unit(**changes))
    assert pixels(make(worker)).shape == (64, 64, 3)


def test_a_controlnet_of_another_family_is_refused(worker: DiffusionWorker) -> None:
    with pytest.raises(BadRequest, match="is made for checkpoints of another family"):
        make(worker, unit(), override_settings={"sd_model_checkpoint": "tiny-sdxl"})
