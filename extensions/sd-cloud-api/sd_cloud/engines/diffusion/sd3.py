"""Stable Diffusion 3 and 3.5 (medium, large, large turbo) from single files.

Esser et al., "Scaling Rectified Flow Transformers" (arXiv 2403.03206). The transformer and the
16-channel VAE are diffusers'; the text encoders are CLIP-L, CLIP-G and, where there are weights for
it, T5. What a file lacks of them is taken from ``models/CLIP``, as in the webui.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.eight_bits import PLAIN, Storage
from sd_cloud.engines.diffusion.layout import UNET, VAE, Layout, vae_config
from sd_cloud.engines.diffusion.model import Model, Placement, build_vae
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.request import Request
from sd_cloud.engines.diffusion.samplers import BY_NAME, TIMESTEP_SAMPLERS
from sd_cloud.engines.diffusion.sd3_text import T5, TextFiles, build_clip_g, build_t5
from sd_cloud.engines.diffusion.text_encoders import TextEncoder, assign, build_text_encoder
from sd_cloud.engines.diffusion.weights_file import Tensors
from sd_cloud.errors import BadRequest, CheckpointBroken
from sd_cloud.job import Job

MARK = f"{UNET}joint_blocks.0.x_block.attn.qkv.weight"
CLIP_L = "text_encoders.clip_l.transformer."
CLIP_G = "text_encoders.clip_g.transformer."
T5_PREFIX = "text_encoders.t5xxl.transformer."
T5_OPTION = "sd3_enable_t5"

HEAD_CHANNELS = 64
SIDE_MULTIPLE_PX = 16
LATENT_SCALE = 1.5305
LATENT_SHIFT = 0.0609
SHIFT = 3.0
LIMIT_SHIFT = 100.0
TIMESTEPS = 1000


def is_sd3(tensors: Mapping[str, Tensor]) -> bool:
    return MARK in tensors


class FlowTransformer(nn.Module):
    """The transformer behind the call that the engine makes of a U-Net."""

    def __init__(self, transformer: SD3Transformer2DModel) -> None:
        super().__init__()
        self.transformer = transformer

    @property
    def config(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.transformer.config
        return found

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Velocity [N, 16, h, w] at ``timestep`` (1000 x sigma); ``class_labels`` is the pooled prompt."""
        added = (
            down_block_additional_residuals,
            mid_block_additional_residual,
            down_intrablock_additional_residuals,
        )
        if any(one is not None for one in added):
            raise BadRequest(
                "ControlNet is for SD 1, SD 2 and SDXL checkpoints", field="alwayson_scripts.controlnet"
            )
        height, width = sample.shape[-2:]
        patch = self.transformer.config["patch_size"]
        even = functional.pad(sample, (0, -width % patch, 0, -height % patch), mode="replicate")
        velocity: Tensor = self.transformer(
            hidden_states=even,
            timestep=timestep.float(),
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=class_labels,
            return_dict=False,
        )[0]
        return (velocity[..., :height, :width],)


@dataclass(eq=False)
class Sd3Model(Model):
    """``t5`` is None where there are no weights of it: the two CLIP encoders alone read the prompt."""

    t5: T5 | None = None

    def parts(self) -> tuple[nn.Module, ...]:
        return (*super().parts(), *((self.t5.model,) if self.t5 else ()))


def load_sd3(path: Path, tensors: Tensors, placement: Placement, storage: Storage = PLAIN) -> Sd3Model:
    """Build every part. Raises CheckpointBroken, naming the file, or the text encoder that is missing."""
    files = TextFiles.beside(path)
    clip_l = _clip_l(tensors, files, path.name, placement)
    clip_g = _clip_g(tensors, files, path.name, placement)
    t5 = _t5(tensors, files, path.name, placement)
    layout = sd3_layout(tensors, path.name)
    if clip_l.width + clip_g.width != layout.unet["pooled_projection_dim"]:
        raise CheckpointBroken(
            f"{path.name} needs text encoders of {layout.unet['pooled_projection_dim']} channels; "
            f"CLIP-L and CLIP-G have {clip_l.width} and {clip_g.width}"
        )
    transformer = FlowTransformer(_transformer(tensors, layout, path.name, placement.dtype))
    vae = build_vae(tensors, VAE, layout.vae, path.name, placement.vae_dtype)
    model = Sd3Model(
        file=path,
        layout=layout,
        placement=placement,
        unet=transformer,
        vae=vae,
        text=(clip_l, clip_g),
        alphas_cumprod=flow_alphas(SHIFT),
        prediction="flow",
        t5=t5,
    )
    gc.collect()
    model.settle(storage)
    return model


def sd3_layout(tensors: Mapping[str, Tensor], name: str) -> Layout:
    """Widths and depths from the tensors, which may be on the meta device. Raises CheckpointBroken."""
    return Layout(
        family="sd3",
        prediction="flow",
        unet=transformer_config(tensors, name),
        vae=vae_config(tensors, VAE, name),
        text=(CLIP_L, CLIP_G),
        latent_scale=LATENT_SCALE,
        latent_shift=LATENT_SHIFT,
    )


def transformer_config(tensors: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Configuration of an SD3Transformer2DModel."""
    try:
        patch = tensors[f"{UNET}x_embedder.proj.weight"]
        places = tensors[f"{UNET}pos_embed"].shape[1]
        context = tensors[f"{UNET}context_embedder.weight"]
        pooled = tensors[f"{UNET}y_embedder.mlp.0.weight"].shape[1]
        out = tensors[f"{UNET}final_layer.linear.weight"].shape[0]
    except KeyError as error:
        raise CheckpointBroken(f"{name}: its transformer is incomplete, {error} is missing") from error
    blocks = {key.split(".")[3] for key in tensors if key.startswith(f"{UNET}joint_blocks.")}
    doubled = {key.split(".")[3] for key in tensors if ".x_block.attn2.qkv.weight" in key}
    width = patch.shape[0]
    return {
        "sample_size": 128,
        "patch_size": patch.shape[2],
        "in_channels": patch.shape[1],
        "out_channels": out // patch.shape[2] ** 2,
        "num_layers": len(blocks),
        "attention_head_dim": HEAD_CHANNELS,
        "num_attention_heads": width // HEAD_CHANNELS,
        "joint_attention_dim": context.shape[1],
        "caption_projection_dim": width,
        "pooled_projection_dim": pooled,
        "pos_embed_max_size": isqrt(places),
        "dual_attention_layers": tuple(sorted(int(number) for number in doubled)),
        "qk_norm": "rms_norm" if f"{UNET}joint_blocks.0.x_block.attn.ln_q.weight" in tensors else None,
    }


def transformer_state(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The transformer's tensors under diffusers' names. Raises CheckpointBroken."""
    own = {key: value for key, value in tensors.items() if key.startswith(UNET)}
    try:
        return dict(convert_sd3_transformer_checkpoint_to_diffusers(own))
    except KeyError as error:
        raise CheckpointBroken(f"{name}: its transformer is incomplete, {error} is missing") from error


def _transformer(tensors: Tensors, layout: Layout, name: str, dtype: torch.dtype) -> SD3Transformer2DModel:
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(**layout.unet)
    assign(transformer, transformer_state(tensors, name), name, "transformer", dtype)
    return transformer.eval().requires_grad_(False)


def _clip_l(tensors: Tensors, files: TextFiles, name: str, placement: Placement) -> TextEncoder:
    own, prefix = files.or_own(tensors, CLIP_L, "clip_l", name)
    return build_text_encoder(own, prefix, name, placement.dtype)


def _clip_g(tensors: Tensors, files: TextFiles, name: str, placement: Placement) -> TextEncoder:
    own, prefix = files.or_own(tensors, CLIP_G, "clip_g", name)
    return build_clip_g(own, prefix, name, placement.dtype)


def _t5(tensors: Tensors, files: TextFiles, name: str, placement: Placement) -> T5 | None:
    if files.t5 is None and not any(key.startswith(T5_PREFIX) for key in tensors):
        return None
    own, prefix = files.or_own(tensors, T5_PREFIX, "t5", name)
    return build_t5(own, prefix, name, placement.dtype)


def uses_t5(options: Options) -> bool:
    """Whether T5 reads the prompt where it is there: unless the request itself says no.

    The webui has to be told to load it; here its files in their place are enough.
    """
    return bool(options.own.get(T5_OPTION, True))


def remarks(model: Sd3Model, options: Options) -> list[str]:
    """What to tell the caller about the text encoders."""
    if model.t5 is None and options.own.get(T5_OPTION):
        where = TextFiles.beside(model.file).looked_in
        return [f"{T5_OPTION}: T5 is not used, neither {model.file.name} nor {where} has its weights"]
    return []


def fitted(request: Request) -> Request:
    """The request at the size SD 3 makes (multiples of 16 px, as in the webui).

    Raises BadRequest for samplers that walk over the timesteps of a noise schedule: there is none.
    """
    hires = request.hires.sampler if request.hires else None
    for sampler, field in ((request.sampler, "sampler_name"), (hires, "hr_sampler_name")):
        if sampler is not None and sampler.name in (*TIMESTEP_SAMPLERS, "LCM"):
            there = ", ".join(name for name in BY_NAME if name != "LCM")
            raise BadRequest(f"{sampler.name!r} does not work with SD 3; there are: {there}", field=field)
    width, height = (side // SIDE_MULTIPLE_PX * SIDE_MULTIPLE_PX for side in (request.width, request.height))
    return replace(request, width=max(width, SIDE_MULTIPLE_PX), height=max(height, SIDE_MULTIPLE_PX))


def alphas_for(model: Model, job: Job) -> Tensor:
    """The flow's levels as alphas, under the ``shift`` that a dialect may have put beside the payload."""
    shift = job.family.get("shift")
    if shift is None:
        return model.alphas_cumprod
    if isinstance(shift, bool) or not isinstance(shift, (int, float)) or not 0 < shift <= LIMIT_SHIFT:
        raise BadRequest(f"{shift!r} is not a number above 0 and up to {LIMIT_SHIFT:g}", field="shift")
    return flow_alphas(float(shift))


def flow_sigmas(shift: float) -> Tensor:
    """[1000] rising noise levels: ``s t / (1 + (s - 1) t)`` (section 5.3.2 of the paper)."""
    share = torch.arange(1, TIMESTEPS + 1) / TIMESTEPS
    return shift * share / (1 + (shift - 1) * share)


def flow_alphas(shift: float) -> Tensor:
    """The alphas whose ``sqrt((1 - a) / a)`` are the flow's levels: how samplers over levels ask.

    float64, because the lowest levels have alphas close to 1.
    """
    return 1 / (flow_sigmas(shift).double() ** 2 + 1)
