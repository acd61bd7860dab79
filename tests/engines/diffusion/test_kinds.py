"""Kinds of files beside the golden ones: inpainting checkpoints, embeddings in their several forms."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sd_cloud.engines.base import Control
from sd_cloud.errors import BadRequest, CheckpointBroken
from sd_cloud.job import Job
from tests.golden.golden import GOLDEN, decibels, install_models

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the tiny checkpoints are not beside this checkout"),
]

FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
WIDE_PROMPT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def worker(data_dir: Path) -> Any:
    from sd_cloud.engines.diffusion.engine import create

    return create(install_models(data_dir))


def changed(data_dir: Path, name: str, change: Callable[[dict[str, Any]], None], sidecar: bool = True) -> str:
    """A copy of the tiny checkpoint with some tensors changed."""
    folder = data_dir / "models" / "Stable-diffusion"
    tensors = load_file(GOLDEN / "checkpoints" / "tiny-a.safetensors")
    change(tensors)
    save_file(tensors, folder / f"{name}.safetensors")
    if sidecar:
        shutil.copy(GOLDEN / "checkpoints" / "tiny-a.yaml", folder / f"{name}.yaml")
    return name


def job(kind: str = "txt2img", **changes: Any) -> Job:
    payload = {"prompt": "a cat", "steps": 3, "width": 64, "height": 64, "seed": 7, **changes}
    return Job(kind=kind, payload=payload, options={"sd_model_checkpoint": "tiny-a"})  # type: ignore[arg-type]


def made(worker: Any, one: Job) -> Any:
    return worker.run(one, lambda progress: None, Control())


def picture(outcome: Any) -> Image.Image:
    return outcome.pictures[0].image


def widen_first_layer(by: int) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        first = tensors[FIRST_LAYER]
        more = torch.full((first.shape[0], by, *first.shape[2:]), 0.01, dtype=first.dtype)
        tensors[FIRST_LAYER] = torch.cat([first, more], dim=1)

    return change


def blind_first_layer(tensors: dict[str, Any]) -> None:
    widen_first_layer(5)(tensors)
    tensors[FIRST_LAYER][:, 4:] = 0


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def masked(**changes: Any) -> Job:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    return job(
        "img2img",
        init_images=[encoded(Image.effect_noise((64, 64), 90).convert("RGB"))],
        mask=encoded(mask),
        inpaint_full_res=False,
        **changes,
    )


def test_an_inpainting_checkpoint_that_ignores_its_condition_is_the_plain_one(
    worker: Any, data_dir: Path
) -> None:
    name = changed(data_dir, "blind-inpainting", blind_first_layer)
    outcome = made(worker, replace(job(), checkpoint=name))
    assert decibels(picture(outcome), picture(made(worker, job()))) > 60
    assert "Conditional mask weight: 1.0" in outcome.pictures[0].infotext
    assert outcome.info["is_using_inpainting_conditioning"] is True


def test_an_inpainting_checkpoint_sees_the_source_and_its_mask(worker: Any, data_dir: Path) -> None:
    one = masked(denoising_strength=1.0, inpainting_fill=3)
    name = changed(data_dir, "inpainting", widen_first_layer(5))
    seeing, again = (made(worker, replace(one, checkpoint=name)) for _ in range(2))
    assert decibels(picture(seeing), picture(again)) > 60
    settings = {"inpainting_mask_weight": 0.0}
    weighed = replace(one, checkpoint=name, payload={**one.payload, "override_settings": settings})
    assert decibels(picture(made(worker, weighed)), picture(seeing)) < 60


def test_the_second_pass_works_with_an_inpainting_checkpoint(worker: Any, data_dir: Path) -> None:
    name = changed(data_dir, "inpainting", widen_first_layer(5))
    for upscaler in ("Latent", "Lanczos"):
        one = job(enable_hr=True, hr_upscaler=upscaler, denoising_strength=0.6)
        assert picture(made(worker, replace(one, checkpoint=name))).size == (128, 128)


@pytest.mark.parametrize(
    ("channels", "field", "more"),
    [
        (5, "refiner_checkpoint", {"refiner_switch_at": 0.3}),
        (4, "refiner_checkpoint", {"refiner_switch_at": 0.3}),
        (4, "hr_checkpoint_name", {"enable_hr": True, "hr_scale": 1, "denoising_strength": 0.6}),
    ],
)
def test_a_checkpoint_that_sees_a_picture_takes_over_only_where_there_is_one(
    worker: Any, data_dir: Path, channels: int, field: str, more: dict[str, Any]
) -> None:
    name = changed(data_dir, f"seeing-{channels}", widen_first_layer(channels))
    with pytest.raises(BadRequest, match=rf"^{field}: "):
        made(worker, job(**{field: name}, **more))


def test_a_lora_fits_an_inpainting_checkpoint(worker: Any, data_dir: Path) -> None:
    name = changed(data_dir, "blind-inpainting", blind_first_layer)
    one = job(prompt="a cat <lora:tiny-style:1>")
    assert decibels(picture(made(worker, replace(one, checkpoint=name))), picture(made(worker, one))) > 60


def test_a_checkpoint_of_a_kind_that_is_not_served_says_so(worker: Any, data_dir: Path) -> None:
    name = changed(data_dir, "depth", widen_first_layer(1))
    with pytest.raises(CheckpointBroken, match=r"depth.*5 input channels"):
        made(worker, replace(job(), checkpoint=name))


def test_instruct_pix2pix_is_guided_by_the_picture_as_well(worker: Any, data_dir: Path) -> None:
    name = changed(data_dir, "pix2pix", widen_first_layer(4))
    grey = encoded(Image.linear_gradient("L").convert("RGB").resize((64, 64)))

    def edited(**changes: Any) -> Any:
        one = job("img2img", init_images=[grey], denoising_strength=0.9, **changes)
        return made(worker, replace(one, checkpoint=name))

    plain, by_one, by_two = edited(), edited(image_cfg_scale=1.0), edited(image_cfg_scale=2.0)
    assert decibels(picture(plain), picture(by_one)) > 60
    assert decibels(picture(plain), picture(by_two)) < 50
    assert "Image CFG scale: 2.0" in by_two.pictures[0].infotext
    with pytest.raises(BadRequest, match="AND works with InstructPix2Pix"):
        edited(image_cfg_scale=2.0, prompt="a cat AND a dog")
    with pytest.raises(BadRequest, match="send img2img"):
        made(worker, replace(job(), checkpoint=name))


@pytest.mark.parametrize(
    "lost",
    [
        "model.diffusion_model.middle_block.0.in_layers.2.weight",
        "first_stage_model.decoder.conv_out.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ],
)
def test_a_checkpoint_with_a_tensor_missing_says_of_which_part(
    worker: Any, data_dir: Path, lost: str
) -> None:
    name = changed(data_dir, "incomplete", lambda tensors: tensors.pop(lost))
    part = {"model": "U-Net", "first_stage_model": "VAE", "cond_stage_model": "text encoder"}[
        lost.split(".")[0]
    ]
    with pytest.raises(CheckpointBroken, match=rf"incomplete.*{part}"):
        made(worker, replace(job(), checkpoint=name))


@pytest.mark.parametrize(
    "sidecar", ["no: [yaml", "just text", "model: {params: 3}", "!!python/object:os.system x"]
)
def test_a_sidecar_that_is_no_plain_configuration_is_refused(
    worker: Any, data_dir: Path, sidecar: str
) -> None:
    name = changed(data_dir, "sidecar", lambda tensors: None, sidecar=False)
    (data_dir / "models" / "Stable-diffusion" / "sidecar.yaml").write_text(sidecar, "utf-8")
    with pytest.raises(CheckpointBroken, match=r"sidecar\.yaml"):
        made(worker, replace(job(), checkpoint=name))


# --- embeddings -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors() -> Any:
    return next(iter(load_file(GOLDEN / "checkpoints" / "tiny-word.safetensors").values()))


def test_an_embedding_means_the_same_in_the_webuis_own_file(
    worker: Any, data_dir: Path, vectors: Any
) -> None:
    wanted = made(worker, job(prompt="a tiny-word cat"))
    saved = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "x", "step": 3}
    torch.save(saved, data_dir / "embeddings" / "oldword.pt")
    outcome = made(worker, job(prompt="a oldword cat"))
    assert decibels(picture(outcome), picture(wanted)) > 60
    assert 'TI hashes: "oldword: ' in outcome.pictures[0].infotext


def test_an_embedding_of_another_width_is_an_ordinary_word(worker: Any, data_dir: Path) -> None:
    save_file({"emb_params": torch.ones(2, 77)}, data_dir / "embeddings" / "broad.safetensors")
    assert "TI hashes" not in made(worker, job(prompt="a broad cat")).pictures[0].infotext


def test_an_sdxl_embedding_has_a_part_for_each_encoder(worker: Any, data_dir: Path) -> None:
    pair = {"clip_l": torch.randn(2, 64), "clip_g": torch.randn(2, 128)}
    save_file(pair, data_dir / "embeddings" / "pairword.safetensors")
    one, plain = (replace(job(prompt=prompt), checkpoint="tiny-sdxl") for prompt in ("a pairword", "a cat"))
    outcome = made(worker, one)
    # Each of the two encoders tells its embeddings, as in the webui.
    assert outcome.pictures[0].infotext.count("pairword: ") == 2
    assert decibels(picture(outcome), picture(made(worker, plain))) < 50
    assert "TI hashes" not in made(worker, job(prompt="a pairword")).pictures[0].infotext
