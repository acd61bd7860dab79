"""Stable Diffusion 3 and 3.5: files, prompts and sampling, on a tiny model in the real layout."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sd_cloud.engines.base import Control
from sd_cloud.engines.diffusion.engine import DiffusionWorker
from sd_cloud.engines.diffusion.model import Placement, load_model
from sd_cloud.engines.diffusion.sd3 import Sd3Model, flow_alphas, flow_sigmas
from sd_cloud.errors import BadRequest, CheckpointBroken, NotImplementedHere
from sd_cloud.job import Job, Outcome
from sd_cloud.settings import Settings, settings_below
from tests.engines.diffusion.sd3_files import LAYOUTS, tiny_sd3, written

GOLDEN = LAYOUTS.parents[1] / "golden" / "checkpoints"
pytestmark = pytest.mark.skipif(not LAYOUTS.is_dir(), reason="needs shared/reference beside the repository")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_below(tmp_path / "data", min_ram_reserved_gib=0.0)


def checkpoint(settings: Settings, name: str = "tiny-sd3", **what: Any) -> Path:
    return written(settings.folders.checkpoints[0] / f"{name}.safetensors", tiny_sd3(**what))


def loaded(path: Path) -> Sd3Model:
    model = load_model(path, None, Placement())
    assert isinstance(model, Sd3Model)
    return model


def make(
    settings: Settings,
    kind: str = "txt2img",
    family: dict[str, Any] | None = None,
    worker: DiffusionWorker | None = None,
    checkpoint: str | None = None,
    **fields: Any,
) -> Outcome:
    payload = {
        "prompt": "a red cat",
        "steps": 3,
        "width": 64,
        "height": 64,
        "seed": 7,
        "cfg_scale": 4,
        "sampler_name": "Euler",
        **fields,
    }
    worker = worker or DiffusionWorker(settings)
    return worker.run(
        Job(kind, payload, family=family or {}, checkpoint=checkpoint), lambda _: None, Control()
    )  # type: ignore[arg-type]


def pixels(outcome: Outcome) -> np.ndarray[Any, Any]:
    image = outcome.pictures[0].image
    assert image is not None
    return np.asarray(image).astype(int)


# --- files --------------------------------------------------------------------------------------


def test_widths_come_from_the_tensors(settings: Settings) -> None:
    model = loaded(checkpoint(settings))
    config = model.layout.unet
    assert (config["num_layers"], config["num_attention_heads"], config["joint_attention_dim"]) == (2, 2, 160)
    assert config["qk_norm"] is None and config["dual_attention_layers"] == ()
    assert model.latent_channels == 16 and model.prediction == "flow" and model.t5 is None


def test_what_35_medium_adds_is_recognised(settings: Settings) -> None:
    model = loaded(checkpoint(settings, version="3.5-medium"))
    assert model.layout.unet["qk_norm"] == "rms_norm" and model.layout.unet["dual_attention_layers"] == (0,)
    assert pixels(make(settings)).std() > 0


def test_what_35_large_adds_is_recognised(settings: Settings) -> None:
    model = loaded(checkpoint(settings, version="3.5-large"))
    assert model.layout.unet["qk_norm"] == "rms_norm" and model.layout.unet["dual_attention_layers"] == ()


def test_text_encoders_are_taken_from_the_clip_folder_when_the_file_has_none(settings: Settings) -> None:
    whole = tiny_sd3()
    inside = loaded(written(settings.folders.checkpoints[0] / "whole.safetensors", whole))
    bare = written(settings.folders.checkpoints[0] / "bare.safetensors", tiny_sd3(clips=False))
    with pytest.raises(CheckpointBroken, match=r"bare\.safetensors has no text encoder clip_l.*CLIP"):
        loaded(bare)
    for which in ("clip_l", "clip_g"):
        prefix = f"text_encoders.{which}.transformer."
        own = {key.removeprefix(prefix): value for key, value in whole.items() if key.startswith(prefix)}
        written(settings.data_dir / "models" / "CLIP" / f"{which}.safetensors", own)
    beside = loaded(bare)
    for one, two in zip(inside.text, beside.text, strict=True):
        assert all(
            torch.equal(value, two.model.state_dict()[key]) for key, value in one.model.state_dict().items()
        )
    assert beside.text[1].projection is not None and beside.text[0].projection is None


def test_an_incomplete_file_is_named_with_what_it_lacks(settings: Settings) -> None:
    tensors = tiny_sd3()
    del tensors["model.diffusion_model.joint_blocks.1.x_block.attn.proj.weight"]
    path = written(settings.folders.checkpoints[0] / "short.safetensors", tensors)
    with pytest.raises(CheckpointBroken, match=r"short\.safetensors.*joint_blocks\.1\.x_block\.attn\.proj"):
        loaded(path)


def test_t5_reads_the_prompt_where_its_weights_are_unless_the_request_says_no(settings: Settings) -> None:
    checkpoint(settings, t5=True)
    worker = DiffusionWorker(settings)
    whole = pixels(make(settings, worker=worker))
    without = make(settings, worker=worker, override_settings={"sd3_enable_t5": False})
    assert (pixels(without) != whole).any() and "T5" not in str(without.info)
    assert (pixels(make(settings, worker=worker)) == whole).all()


def test_the_info_says_so_when_t5_is_asked_for_and_not_there(settings: Settings) -> None:
    checkpoint(settings)
    plain = make(settings)
    asked = make(settings, override_settings={"sd3_enable_t5": True})
    assert (pixels(asked) == pixels(plain)).all() and "T5" not in str(plain.info)
    assert re.search(
        r"T5 is not used, neither tiny-sd3\.safetensors nor \S+CLIP has its weights", str(asked.info)
    )


def test_t5_sees_words_without_weights_then_an_end_and_padding(settings: Settings) -> None:
    t5 = loaded(checkpoint(settings, t5=True)).t5
    assert t5 is not None
    # As T5TokenizerFast of transformers 4.30 makes them of the SentencePiece model.
    plain = t5.ids("a photo of a red cat", 12, emphasis=True)
    assert plain == [3, 9, 1202, 13, 3, 9, 1131, 1712, 1, 0, 0, 0]
    # Spaces beside a bracket stand at an end: they are tokens of their own.
    assert t5.ids("a (red:1.4) cat", 8, emphasis=True) == [3, 9, 3, 1131, 1712, 1, 0, 0]
    assert t5.ids("</s> <extra_id_0>", 8, emphasis=True) == [3, 1, 3, 32099, 1, 0, 0, 0]
    assert t5.ids("a photo of a red cat", 3, emphasis=True) == [3, 9, 1202]
    states = t5.encode(["a red cat", "a dog"], 8, emphasis=True)
    assert states.shape == (2, 8, 160) and not torch.equal(states[0], states[1])


def test_t5_in_half_precision_keeps_what_would_overflow(settings: Settings) -> None:
    tensors = tiny_sd3(t5=True)
    wide = "text_encoders.t5xxl.transformer.encoder.block.1.layer.1.DenseReluDense.wo.weight"
    tensors[wide] = tensors[wide] * 30000
    path = written(settings.folders.checkpoints[0] / "wide.safetensors", tensors)
    whole = loaded(path).t5
    half = load_model(path, None, Placement(dtype=torch.float16))
    assert whole is not None and isinstance(half, Sd3Model) and half.t5 is not None
    states = half.t5.encode(["a red cat"], 8, emphasis=True)
    assert bool(states.isfinite().all())
    difference = states.float() - whole.encode(["a red cat"], 8, emphasis=True)
    assert float(difference.abs().max()) < 0.001


# --- pictures -----------------------------------------------------------------------------------


def test_euler_follows_the_flow(settings: Settings) -> None:
    """The engine's latents against the ODE solved here, from the same noise and conditions."""
    from sd_cloud.engines.diffusion import guidance

    model = loaded(checkpoint(settings))
    seen: dict[str, list[torch.Tensor]] = {"x": [], "sigma": [], "out": []}
    original = guidance.Guided.__call__

    def watched(self: Any, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        out = original(self, x, level)
        seen["x"].append(x)
        seen["sigma"].append(level[0])
        seen["out"].append(out)
        return out

    guidance.Guided.__call__ = watched  # type: ignore[method-assign]
    try:
        make(settings, steps=4)
    finally:
        guidance.Guided.__call__ = original  # type: ignore[method-assign]
    levels = flow_sigmas(3.0)
    assert (
        float(seen["sigma"][0]) == pytest.approx(float(levels[-1]), abs=1e-5) == pytest.approx(1.0, abs=1e-5)
    )
    assert float(seen["sigma"][-1]) == pytest.approx(float(levels[0]), rel=1e-3)
    for place in range(3):
        x, sigma, following = seen["x"][place], seen["sigma"][place], seen["sigma"][place + 1]
        velocity = (x - seen["out"][place]) / sigma
        torch.testing.assert_close(
            seen["x"][place + 1], x + velocity * (following - sigma), rtol=1e-4, atol=1e-4
        )
    assert model.alphas_cumprod.shape == (1000,)


def test_the_denoised_latent_is_the_noise_less_the_velocity(settings: Settings) -> None:
    from sd_cloud.engines.diffusion.conditioning import Cond, Encoded, Weighted
    from sd_cloud.engines.diffusion.guidance import Guided
    from sd_cloud.engines.diffusion.options import Options

    model = loaded(checkpoint(settings))
    random = torch.Generator().manual_seed(2)
    context, pooled = torch.randn(154, 160, generator=random), torch.randn(128, generator=random)
    cond = Cond(context, pooled)
    guided = Guided(
        model=model,
        encoded=Encoded([[Weighted([(9, cond)], 1.0)]], [[(9, cond)]]),
        options=Options(Job("txt2img", {})),
        control=Control(),
        alphas_cumprod=flow_alphas(3.0),
        cfg_scale=1.0,
        total_calls=1,
    )
    x, sigma = torch.randn(1, 16, 8, 8, generator=random), torch.tensor([0.5])
    with torch.no_grad():
        # Two rows, as the engine asks for the prompt and the negative prompt at once: the tiny random
        # network makes much of the last bits, which depend on the size of the batch.
        velocity = model.unet.transformer(
            hidden_states=x.repeat(2, 1, 1, 1),
            timestep=torch.tensor([500.0, 500.0]),
            encoder_hidden_states=context[None].repeat(2, 1, 1),
            pooled_projections=pooled[None].repeat(2, 1),
            return_dict=False,
        )[0][:1]
        denoised = guided(x, sigma)
    torch.testing.assert_close(denoised, x - 0.5 * velocity, rtol=1e-3, atol=1e-3)


def test_the_same_request_makes_the_same_picture_and_the_prompt_matters(settings: Settings) -> None:
    checkpoint(settings)
    first = pixels(make(settings))
    assert first.shape == (64, 64, 3)
    assert (pixels(make(settings)) == first).all()
    assert (pixels(make(settings, prompt="a dog")) != first).any()
    assert (pixels(make(settings, seed=8)) != first).any()


def test_long_and_weighted_prompts_are_read(settings: Settings) -> None:
    checkpoint(settings)
    plain = pixels(make(settings, prompt="a red cat " * 40))
    weighed = pixels(make(settings, prompt="a (red:1.6) cat " * 40))
    assert (plain != weighed).any()


def test_sides_become_multiples_of_sixteen(settings: Settings) -> None:
    checkpoint(settings)
    outcome = make(settings, width=72, height=90)
    assert pixels(outcome).shape == (80, 64, 3)
    assert "Size: 64x80" in outcome.pictures[0].infotext


@pytest.mark.parametrize("sampler", ["DPM++ 2M", "Euler a", "Heun", "DPM++ 2M SDE"])
def test_samplers_over_levels_work(settings: Settings, sampler: str) -> None:
    checkpoint(settings)
    assert np.isfinite(pixels(make(settings, sampler_name=sampler))).all()


@pytest.mark.parametrize("sampler", ["DDIM", "UniPC", "LCM", "PLMS"])
def test_samplers_over_timesteps_are_refused_by_name(settings: Settings, sampler: str) -> None:
    checkpoint(settings)
    with pytest.raises(
        BadRequest, match=f"^sampler_name: '{sampler}' does not work with SD 3; there are: .*Euler"
    ):
        make(settings, sampler_name=sampler)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs shared/golden beside the repository")
@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("refiner_checkpoint", {"refiner_switch_at": 0.3}),
        ("hr_checkpoint_name", {"enable_hr": True, "hr_upscaler": "Latent", "hr_scale": 1}),
        ("sd_vae", {}),
    ],
)
def test_what_has_latents_of_other_channels_is_refused_by_its_field(
    settings: Settings, field: str, more: dict[str, Any]
) -> None:
    checkpoint(settings)
    for name in ("tiny-a.safetensors", "tiny-a.yaml"):
        shutil.copy(GOLDEN / name, settings.folders.checkpoints[0])
    settings.folders.vaes[0].mkdir(parents=True)
    shutil.copy(GOLDEN / "tiny-vae.safetensors", settings.folders.vaes[0])
    own = {field: "tiny-a"} if field != "sd_vae" else {"override_settings": {field: "tiny-vae.safetensors"}}
    with pytest.raises(BadRequest, match=rf"^{field}: tiny-(a|vae)\.safetensors .*\b4\b.*\b16\b"):
        make(settings, checkpoint="tiny-sd3", **own, **more)


def test_img2img_of_no_strength_gives_the_picture_through_the_vae(settings: Settings) -> None:
    model = loaded(checkpoint(settings))
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    weak = make(settings, "img2img", init_images=[encoded], denoising_strength=0.0, steps=8)
    strong = make(settings, "img2img", init_images=[encoded], denoising_strength=0.9, steps=8)
    assert (pixels(weak) != pixels(strong)).any()
    assert model.layout.latent_shift == 0.0609


def test_hires_fix_works_at_sides_that_are_odd_in_latents(settings: Settings) -> None:
    checkpoint(settings)
    outcome = make(settings, enable_hr=True, hr_scale=1.13, hr_upscaler="Latent", denoising_strength=0.5)
    assert pixels(outcome).shape[0] >= 64


def test_shift_moves_the_levels_and_changes_the_picture(settings: Settings) -> None:
    checkpoint(settings)
    assert (pixels(make(settings, family={"shift": 1.0})) != pixels(make(settings))).any()
    assert (pixels(make(settings, family={"shift": 3.0})) == pixels(make(settings))).all()
    for wrong in (0, -1, "3", True):
        with pytest.raises(BadRequest, match=r"^shift: "):
            make(settings, family={"shift": wrong})


def test_levels_are_those_of_the_paper() -> None:
    assert flow_sigmas(1.0)[499] == pytest.approx(0.5)
    assert flow_sigmas(3.0)[499] == pytest.approx(0.75)
    alphas = flow_alphas(3.0)
    torch.testing.assert_close(
        (((1 - alphas) / alphas) ** 0.5).float(), flow_sigmas(3.0), rtol=1e-6, atol=0.0
    )


def test_controlnet_is_refused_by_name(settings: Settings) -> None:
    checkpoint(settings)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    unit = {"image": base64.b64encode(buffer.getvalue()).decode(), "model": "x", "module": "none"}
    with pytest.raises(NotImplementedHere, match="ControlNet is for SD 1, SD 2 and SDXL"):
        make(settings, alwayson_scripts={"controlnet": {"args": [unit]}})
