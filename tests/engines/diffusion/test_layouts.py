"""Every key of the real full-size files goes into a module that the loader builds.

On the meta device: names and shapes only. `assign` fails on what a module lacks or does not know;
counting numbers then shows that nothing of the file was left behind on the way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sd_cloud.engines.diffusion import sd3
from sd_cloud.engines.diffusion.controlnet.model import controlnet_config, load_controlnet
from sd_cloud.engines.diffusion.layout import VAE, recognise
from sd_cloud.engines.diffusion.model import build_unet, build_vae
from sd_cloud.engines.diffusion.sd3_text import build_t5
from sd_cloud.engines.diffusion.text_encoders import TextEncoder, build_text_encoder
from sd_cloud.errors import BadRequest

LAYOUTS = Path(__file__).resolve().parents[4] / "shared" / "reference" / "checkpoint-layouts"
pytestmark = pytest.mark.skipif(not LAYOUTS.is_dir(), reason="needs shared/reference beside the repository")

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}
HALF = torch.float16

SCHEDULE = {
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "log_one_minus_alphas_cumprod",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "denoiser.sigmas",
    "logvar",
}

Tensors = dict[str, Tensor]


def layout_of(name: str) -> Tensors:
    keys = json.loads((LAYOUTS / f"{name}.json").read_text())
    return {
        key: torch.empty(shape, dtype=DTYPES[dtype], device="meta") for key, (shape, dtype) in keys.items()
    }


def used(key: str) -> bool:
    """Whether a tensor of the file is one that modules hold; the rest is known by name."""
    unused = ("position_ids", "logit_scale", "attn_mask")
    return key not in SCHEDULE and not key.endswith(unused)


def numbers(tensors: Iterable[Tensor]) -> int:
    return sum(math.prod(one.shape) for one in tensors)


def in_modules(modules: Iterable[nn.Module]) -> int:
    return sum(numbers(module.parameters()) for module in modules)


def in_text(encoders: Iterable[TextEncoder]) -> int:
    found = list(encoders)
    projections = [one.projection for one in found if one.projection is not None]
    return in_modules(one.model for one in found) + numbers(projections)


@pytest.mark.parametrize(
    ("name", "family", "widths", "context", "heads"),
    [
        ("sd15", "sd1", (320, 640, 1280, 1280), 768, 8),
        ("sd21-v", "sd2", (320, 640, 1280, 1280), 1024, (5, 10, 20, 20)),
        ("sdxl-base", "sdxl", (320, 640, 1280), 2048, (5, 10, 20)),
        ("sdxl-refiner", "sdxl-refiner", (384, 768, 1536, 1536), 1280, (6, 12, 24, 24)),
    ],
)
def test_every_key_of_the_older_families_has_its_place(
    name: str, family: str, widths: tuple[int, ...], context: int, heads: object
) -> None:
    tensors = layout_of(name)
    layout = recognise(tensors, None, name)
    assert layout.family == family
    assert layout.unet["block_out_channels"] == widths and layout.unet["cross_attention_dim"] == context
    assert layout.unet["attention_head_dim"] == heads
    unet = build_unet(tensors, layout, name, HALF)
    vae = build_vae(tensors, VAE, layout.vae, name, HALF)
    text = [build_text_encoder(tensors, prefix, name, HALF) for prefix in layout.text]
    wanted = numbers(value for key, value in tensors.items() if used(key))
    assert in_modules([unet, vae]) + in_text(text) == wanted


@pytest.mark.parametrize("name", ["sd3-medium", "sd3-medium-incl-clips", "sd3-medium-incl-clips-t5xxl"])
def test_every_key_of_stable_diffusion_3_has_its_place(name: str) -> None:
    tensors = layout_of(name)
    assert sd3.is_sd3(tensors)
    layout = sd3.sd3_layout(tensors, name)
    assert layout.unet["num_layers"] == layout.unet["num_attention_heads"] == 24
    assert layout.unet["joint_attention_dim"] == 4096 and layout.unet["pos_embed_max_size"] == 192
    transformer = sd3._transformer(tensors, layout, name, HALF)
    vae = build_vae(tensors, VAE, layout.vae, name, HALF)
    found = in_modules([transformer, vae]) + numbers([transformer.pos_embed.pos_embed])
    left_out = 0
    if "clips" in name:
        clip_l = build_text_encoder(tensors, sd3.CLIP_L, name, HALF)
        clip_g = sd3.build_clip_g(tensors, sd3.CLIP_G, name, HALF)
        found += in_text([clip_l, clip_g])
        assert (clip_l.width, clip_l.layers, clip_g.width, clip_g.layers) == (768, 12, 1280, 32)
        left_out += numbers(
            value for key, value in tensors.items() if key == f"{sd3.CLIP_L}text_projection.weight"
        )
    if "t5xxl" in name:
        t5 = build_t5(tensors, sd3.T5_PREFIX, name, HALF)
        config = t5.model.config
        assert (config.d_model, config.d_ff, config.num_heads, config.num_layers) == (4096, 10240, 64, 24)
        found += in_modules([t5.model])
        left_out += numbers([tensors[f"{sd3.T5_PREFIX}encoder.embed_tokens.weight"]])  # the same as shared
    assert found + left_out == numbers(value for key, value in tensors.items() if used(key))


def test_every_key_of_stable_diffusion_35_large_has_its_place() -> None:
    tensors = layout_of_35_large()
    layout = sd3.sd3_layout(tensors, "large")
    assert layout.unet["num_layers"] == layout.unet["num_attention_heads"] == 38
    assert layout.unet["qk_norm"] == "rms_norm" and layout.unet["dual_attention_layers"] == ()
    transformer = sd3._transformer(tensors, layout, "large", HALF)
    vae = build_vae(tensors, VAE, layout.vae, "large", HALF)
    found = in_modules([transformer, vae]) + numbers([transformer.pos_embed.pos_embed])
    assert found == numbers(value for key, value in tensors.items() if used(key))
    assert 8.0e9 < in_modules([transformer]) < 8.2e9  # 8.1 billion, as published


def layout_of_35_large() -> Tensors:
    """SD 3's own with 38 blocks, 2432 wide, and norms of queries and keys."""
    made: Tensors = {}
    for key, value in layout_of("sd3-medium").items():
        shape = [2432 * side // 1536 if side in WIDTHS else side for side in value.shape]
        names = [key]
        if ".joint_blocks." in key:
            number = int(key.split(".")[3])
            blocks = {0: range(37), 23: range(37, 38)}.get(number, range(0))
            names = [key.replace(f".{number}.", f".{block}.", 1) for block in blocks]
        made |= {name: torch.empty(shape, dtype=HALF, device="meta") for name in names}
    for block in range(38):
        for side in ("x_block", "context_block"):
            base = f"model.diffusion_model.joint_blocks.{block}.{side}.attn."
            made |= {f"{base}{norm}.weight": torch.empty(64, device="meta") for norm in ("ln_q", "ln_k")}
    return made


WIDTHS = tuple(1536 * times for times in (1, 2, 3, 4, 6))
"""Sides of SD 3 medium's transformer that grow with its width."""


@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_every_key_of_a_controlnet_has_its_place(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sd_cloud.engines.diffusion.controlnet import model as controlnet_model

    tensors = {
        prefix + key.removeprefix("control_model."): one for key, one in layout_of("controlnet-sd15").items()
    }
    monkeypatch.setattr(controlnet_model, "read_tensors", lambda path: tensors)
    layout = recognise(layout_of("sd15"), None, "sd15")
    unet = build_unet(layout_of("sd15"), layout, "sd15", HALF)
    network = load_controlnet(Path("control.pth"), unet, device=torch.device("meta"), dtype=HALF)
    assert in_modules([network.net]) == numbers(tensors.values())
    assert network.net.config["conditioning_embedding_out_channels"] == (16, 32, 96, 256)
    assert network.net.config["attention_head_dim"] == 8


def test_a_controlnet_of_sd1_does_not_fit_sdxl(monkeypatch: pytest.MonkeyPatch) -> None:
    from sd_cloud.engines.diffusion.controlnet import model as controlnet_model

    monkeypatch.setattr(controlnet_model, "read_tensors", lambda path: layout_of("controlnet-sd15"))
    tensors = layout_of("sdxl-base")
    unet = build_unet(tensors, recognise(tensors, None, "sdxl"), "sdxl", HALF)
    with pytest.raises(BadRequest, match=r"control\.pth is made for checkpoints of another family"):
        load_controlnet(Path("control.pth"), unet, device=torch.device("meta"), dtype=HALF)


def test_an_sdxl_controlnet_in_the_ldm_layout_is_understood() -> None:
    """Made from SDXL's own encoder, as such files are; its pooled conditions go in as the U-Net's."""
    from sd_cloud.engines.diffusion.controlnet.model import _in_diffusers_names

    base = "model.diffusion_model."
    tensors = layout_of("sdxl-base")
    parts = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.")
    own = {key[len(base) :]: one for key, one in tensors.items() if key.startswith(base)}
    made = {f"control_model.{key}": one for key, one in own.items() if key.startswith(parts)}
    hint = [(3, 16), (16, 16), (16, 32), (32, 32), (32, 96), (96, 96), (96, 256), (256, 320)]
    for place, (before, after) in enumerate(hint):
        made[f"control_model.input_hint_block.{2 * place}.weight"] = torch.empty(
            after, before, 3, 3, device="meta"
        )
        made[f"control_model.input_hint_block.{2 * place}.bias"] = torch.empty(after, device="meta")
    for place, width in enumerate([320, 320, 320, 320, 640, 640, 640, 1280, 1280]):
        made[f"control_model.zero_convs.{place}.0.weight"] = torch.empty(width, width, 1, 1, device="meta")
        made[f"control_model.zero_convs.{place}.0.bias"] = torch.empty(width, device="meta")
    made["control_model.middle_block_out.0.weight"] = torch.empty(1280, 1280, 1, 1, device="meta")
    made["control_model.middle_block_out.0.bias"] = torch.empty(1280, device="meta")

    unet = build_unet(tensors, recognise(tensors, None, "sdxl"), "sdxl", HALF)
    state = _in_diffusers_names(made, "xl.safetensors", "model")
    config = controlnet_config(state, unet.config, "xl.safetensors")
    from diffusers import ControlNetModel

    with torch.device("meta"):
        net = ControlNetModel(**config)
    result = net.load_state_dict({key: one.float() for key, one in state.items()}, assign=True)
    assert not result.missing_keys and not result.unexpected_keys
    assert in_modules([net]) == numbers(made.values())
    assert config["projection_class_embeddings_input_dim"] == 2816
