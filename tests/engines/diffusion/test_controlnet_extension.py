"""The pictures that sd-webui-controlnet itself makes: reference units and T2I-Adapters.

``controlnet_pictures/`` holds what webui 1.10.1 with that extension (API version 3; torch 2.1.2, CPU,
float32) answered to the requests below, each in a webui that had made a plain picture of the same seed.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data

from sd_cloud.engines.base import Control
from sd_cloud.engines.diffusion.controlnet import preparing
from sd_cloud.engines.diffusion.controlnet.model import load_control_model
from sd_cloud.engines.diffusion.engine import DiffusionWorker
from sd_cloud.engines.diffusion.model import Placement, load_model
from sd_cloud.engines.diffusion.preprocess.detect import detect
from sd_cloud.engines.diffusion.preprocess.module import Module
from sd_cloud.errors import BadRequest, CheckpointBroken
from sd_cloud.job import Job, Outcome
from tests.e2e.controlnet import write_adapter, write_controlnet
from tests.golden.golden import GOLDEN, decibels, install_models

PICTURES = Path(__file__).with_name("controlnet_pictures")
ADAPTER = "t2iadapter_random"
SD2 = "controlnet_sd2"
RECOLOR = "recolor_luminance"
OTHER = "tiny-b.safetensors"
REFINER = {"refiner_checkpoint": OTHER, "refiner_switch_at": 0.5}
SOFT = "My prompt is more important"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs shared/golden beside the repository")


def base64_of(pixels: np.ndarray[Any, Any], size: tuple[int, int]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PERSON, CUP = base64_of(data.astronaut(), (96, 96)), base64_of(data.coffee(), (96, 64))
HIRES = {
    "enable_hr": True,
    "hr_scale": 1.5,
    "hr_upscaler": "Latent",
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 4,
}
BRIEF = {**HIRES, "steps": 2, "hr_second_pass_steps": 1}


def unit(module: str, image: str = PERSON, **fields: Any) -> dict[str, Any]:
    return {"enabled": True, "module": module, "image": image, "model": "None", **fields}


SMALL, SMALL_CUP = base64_of(data.astronaut(), (64, 64)), base64_of(data.coffee(), (64, 64))
DISC = base64_of((np.hypot(*np.ogrid[-48:48, -48:48]) < 30).astype(np.uint8) * 255, (64, 64))


def filled(**fields: Any) -> dict[str, Any]:
    return unit("inpaint_only+lama", SMALL, mask=DISC, model=ADAPTER, **fields)


def painted(image: str, **fields: Any) -> dict[str, Any]:
    return unit("inpaint_only", image, mask=DISC, model=ADAPTER, **fields)


CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "ref_reference_only_soft": ([unit("reference_only", control_mode=SOFT, weight=0.6)], {}),
    "ref_reference_adain_fid1": ([unit("reference_adain", threshold_a=0.9, weight=0.8)], {}),
    "ref_reference_adain_attn": ([unit("reference_adain+attn")], {}),
    "ref_reference_only_xl": ([unit("reference_only")], {"checkpoint": "tiny-sdxl.safetensors"}),
    "ref_two": ([unit("reference_only", weight=0.5), unit("reference_adain", CUP, threshold_a=0.2)], {}),
    "ref_hires": ([unit("reference_only")], HIRES),
    "ref_img2img": ([unit("reference_only")], {"init_images": [CUP], "denoising_strength": 0.7}),
    "ref_t2ia": ([unit("reference_only"), unit("canny", model=ADAPTER)], {}),
    "t2i_soft": ([unit("none", model=ADAPTER, control_mode=SOFT, weight=0.7)], {}),
    "t2i_hires": ([unit("canny", model=ADAPTER)], HIRES),
    "t2i_colorfix": ([unit("tile_colorfix", model=ADAPTER)], {}),
    "t2i_inpaint": ([unit("inpaint_only", SMALL, mask=DISC, model=ADAPTER)], {}),
    "hires_low_colorfix": ([unit("tile_colorfix", model=ADAPTER, hr_option="Low res only")], HIRES),
    "two_inpaint": ([painted(SMALL), painted(SMALL_CUP)], {}),
    "two_recolor": ([unit(RECOLOR, model=ADAPTER), unit("recolor_intensity", CUP, model=ADAPTER)], {}),
    "inpaint_colorfix": ([painted(SMALL, weight=0.7), unit("tile_colorfix", CUP, model=ADAPTER)], {}),
    "two_of_a_picture": ([unit("tile_colorfix", model=ADAPTER, weight=share) for share in (1, 0.5)], {}),
    "refiner_colorfix": ([unit("tile_colorfix", model=ADAPTER)], {**REFINER, "n_iter": 2}),
    "hires_checkpoint": ([unit("canny", model=ADAPTER)], {**BRIEF, "hr_checkpoint_name": OTHER, "n_iter": 2}),
    "sd2": ([unit("none", model=SD2)], {"checkpoint": "tiny-sd2v.safetensors"}),
    "lama": ([filled()], {"sampler_name": "Euler a", "n_iter": 2}),
    "lama_img2img": ([filled(weight=0.6)], {"init_images": [CUP], "denoising_strength": 0.9}),
}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiffusionWorker]:
    settings = install_models(tmp_path_factory.mktemp("data"))
    write_adapter(settings.folders.controlnets[0] / f"{ADAPTER}.safetensors")
    write_controlnet(settings.folders.controlnets[0] / f"{SD2}.safetensors", "tiny-sd2v")
    made = DiffusionWorker(settings)
    yield made
    made.unload()


def make(worker: DiffusionWorker, units: list[dict[str, Any]], **fields: Any) -> Outcome:
    checkpoint = fields.pop("checkpoint", "tiny-a.safetensors")
    payload = {
        "prompt": "a red apple",
        "negative_prompt": "blue",
        "seed": 7,
        "steps": 6,
        "width": 64,
        "height": 64,
        "cfg_scale": 6,
        "sampler_name": "Euler",
        "scheduler": "Automatic",
        "override_settings": {"sd_model_checkpoint": checkpoint},
        "alwayson_scripts": {"controlnet": {"args": units}},
        **fields,
    }
    kind = "img2img" if "init_images" in fields else "txt2img"
    return worker.run(Job(kind, payload), lambda _: None, Control())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_picture_is_the_extensions(
    worker: DiffusionWorker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "detect", detected)
    units, fields = CASES[name]
    for place, made in enumerate(make(worker, units, **fields).of_role("image")):
        assert made.image is not None
        with Image.open(PICTURES / f"{name}.{place}.png") as theirs:
            assert decibels(theirs, made.image) >= 60


def detected(module: Module, pixels: Any, *given: Any, field: str) -> Any:
    """In place of LaMa's network, what the extension's gave: random weights of 200 MB for one picture."""
    if module.name != "inpaint_only+lama":
        return detect(module, pixels, *given, field=field)
    with Image.open(PICTURES / "lama_map.png") as theirs:
        return np.dstack([np.asarray(theirs)[:, :, :3], pixels[:, :, 3]])


def test_with_a_refiner_the_text_names_the_units_after_the_hires_pass(worker: DiffusionWorker) -> None:
    text = make(worker, [unit("none", model=ADAPTER)], **BRIEF, **REFINER).pictures[0].infotext
    assert text.index("ControlNet 0") > text.index("Hires upscaler")


def test_a_reference_leaves_the_model_as_it_was(worker: DiffusionWorker) -> None:
    plain = make(worker, []).of_role("image")[0].image
    changed = make(worker, [unit("reference_adain+attn")]).of_role("image")[0].image
    again = make(worker, []).of_role("image")[0].image
    assert plain is not None and changed is not None and again is not None
    assert decibels(plain, changed) < 40 and plain.tobytes() == again.tobytes()


def test_a_reference_needs_no_model_and_takes_no_region(worker: DiffusionWorker) -> None:
    with pytest.raises(BadRequest, match=r"args\[0\]\.effective_region_mask"):
        make(worker, [unit("reference_only", effective_region_mask=CUP)])


# --- T2I-Adapter files -----------------------------------------------------------------------------


def adapter(path: Path) -> Any:
    model = load_model(
        GOLDEN / "checkpoints/tiny-a.safetensors", GOLDEN / "checkpoints/tiny-a.yaml", Placement()
    )
    return load_control_model(path, model.unet, device=torch.device("cpu"), dtype=torch.float32)


def test_an_adapter_in_diffusers_layout_is_the_same_adapter(tmp_path: Path) -> None:
    write_adapter(tmp_path / "one.safetensors")
    tensors = load_file(tmp_path / "one.safetensors")
    renamed = {}
    for key, value in tensors.items():
        if not key.startswith("body."):
            renamed[f"adapter.{key}"] = value
            continue
        _, number, rest = key.split(".", 2)
        level, place = divmod(int(number), 2)
        within = f"in_conv.{rest[8:]}" if rest.startswith("in_conv.") else f"resnets.{place}.{rest}"
        renamed[f"adapter.body.{level}.{within}"] = value
    save_file(renamed, tmp_path / "two.safetensors")
    one, two = (adapter(tmp_path / f"{name}.safetensors").net.state_dict() for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("change", "error", "fact"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "body.3.block1.weight"}, CheckpointBroken, "lacks"),
        (lambda t: {**t, "body.3.more": torch.zeros(1)}, CheckpointBroken, "not known"),
        (lambda t: {k: v for k, v in t.items() if "conv_in." not in k}, CheckpointBroken, "lacks"),
        (
            lambda t: {**t, "conv_in.weight": torch.zeros(48, 192, 3, 3)},
            BadRequest,
            "checkpoints of another family",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_named(
    tmp_path: Path, change: Any, error: type[Exception], fact: str
) -> None:
    write_adapter(tmp_path / "file.safetensors")
    save_file(change(load_file(tmp_path / "file.safetensors")), tmp_path / "file.safetensors")
    with pytest.raises(error, match=rf"file\.safetensors.*{fact}"):
        adapter(tmp_path / "file.safetensors")
