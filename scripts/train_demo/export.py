"""Write the single-file LDM checkpoint with its sidecar yaml, and kohya LoRA names.

The latents' scaling is baked into the VAE's 1x1 convolutions, so the usual `scale_factor: 0.18215`
gives the U-Net latents of zero mean and unit deviation.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .sampling import SCALE_FACTOR
from .unet import UNET_BLOCKS, UNET_HEADS, UNET_RES_BLOCKS
from .vae import BLOCKS as VAE_BLOCKS
from .vae import RES_BLOCKS as VAE_RES_BLOCKS

POSTERIOR_DEVIATION = 0.02

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name: str) -> str:
    """diffusers' name of a U-Net weight -> LDM's, under `model.diffusion_model.`."""
    fixed = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for ours, theirs in fixed.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    per_level = UNET_RES_BLOCKS + 1
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, index, rest = match.groups()
        position = 1 if kind == "attentions" else 2 * int(index)
        return f"middle_block.{position}.{_inner(kind, rest)}"
    match = re.match(
        r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name
    )
    assert match, name
    side, level, kind, index, rest = match.group(1), int(match[2]), match[3], int(match[4]), match[5]
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{per_level * (level + 1)}.0.{rest.replace('conv.', 'op.')}"
        block = 1 + per_level * level + index
        return f"input_blocks.{block}.{int(kind == 'attentions')}.{_inner(kind, rest)}"
    if kind == "upsamplers":
        # After the last block of a level: behind its attention, where there is one.
        has_attention = level == 0
        return f"output_blocks.{per_level * (level + 1) - 1}.{1 + int(has_attention)}.{rest}"
    return f"output_blocks.{per_level * level + index}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    if kind != "resnets":
        return rest
    part, _, tail = rest.partition(".")
    return f"{RESNET[part]}.{tail}"


def vae_name(name: str) -> str:
    """diffusers' name of a VAE weight -> LDM's, under `first_stage_model.`."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if match := re.match(r"(.*)mid_block\.attentions\.0\.(.*)\.(weight|bias)$", name):
        return f"{match[1]}mid.attn_1.{VAE_ATTENTION[match[2]]}.{match[3]}"
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    last = len(VAE_BLOCKS) - 1
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{last - int(m[1])}.block.", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)


def scaled_vae(weights: dict[str, Tensor], mean: Tensor, deviation: Tensor) -> dict[str, Tensor]:
    """The VAE whose latents times 0.18215 are what the U-Net was trained on."""
    out = {key: value.clone() for key, value in weights.items()}
    unit = deviation * SCALE_FACTOR
    out["quant_conv.weight"][:4] /= unit[:, None, None, None]
    out["quant_conv.bias"][:4] = (out["quant_conv.bias"][:4] - mean) / unit
    out["quant_conv.weight"][4:] = 0
    out["quant_conv.bias"][4:] = 2 * math.log(POSTERIOR_DEVIATION / SCALE_FACTOR)
    kernel = weights["post_quant_conv.weight"]
    out["post_quant_conv.weight"] = kernel * unit[None, :, None, None]
    out["post_quant_conv.bias"] = weights["post_quant_conv.bias"] + kernel[:, :, 0, 0] @ mean
    return out


def unscaled_vae(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A shipped VAE's weights without the 0.18215: its latents are then of unit deviation, as trained on."""
    out = {key: value.clone() for key, value in weights.items()}
    out["quant_conv.weight"][:4] *= SCALE_FACTOR
    out["quant_conv.bias"][:4] *= SCALE_FACTOR
    out["post_quant_conv.weight"] /= SCALE_FACTOR
    return out


def checkpoint(unet: dict[str, Tensor], text: dict[str, Tensor], vae: dict[str, Tensor]) -> dict[str, Tensor]:
    """One LDM state dict from the three parts' own weights (the VAE already scaled)."""
    out: dict[str, Tensor] = {}
    for name, value in unet.items():
        out[f"model.diffusion_model.{unet_name(name)}"] = value
    for name, value in vae.items():
        ldm_name = vae_name(name)
        is_projection = ".mid.attn_1." in ldm_name and ldm_name.endswith("weight") and value.ndim == 2
        out[f"first_stage_model.{ldm_name}"] = value[:, :, None, None] if is_projection else value
    for name, value in text.items():
        bare = name.removeprefix("text_model.")
        if not bare.endswith("position_ids"):
            out[f"cond_stage_model.transformer.text_model.{bare}"] = value
    return {name: value.to(torch.float16).contiguous() for name, value in out.items()}


def sidecar(text_version: str) -> str:
    """The yaml both the webui and diffusers read the sizes from."""
    attention = [2 ** (len(UNET_BLOCKS) - 1)]
    vae_mult = [width // VAE_BLOCKS[0] for width in VAE_BLOCKS]
    unet_mult = [width // UNET_BLOCKS[0] for width in UNET_BLOCKS]
    return f"""\
model:
  base_learning_rate: 0.0001
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.012
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 8
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: {SCALE_FACTOR}
    use_ema: false
    scheduler_config:
      target: ldm.lr_scheduler.LambdaLinearScheduler
      params:
        warm_up_steps: [10000]
        cycle_lengths: [10000000000000]
        f_start: [1.0e-06]
        f_max: [1.0]
        f_min: [1.0]
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 8
        in_channels: 4
        out_channels: 4
        model_channels: {UNET_BLOCKS[0]}
        attention_resolutions: {attention}
        num_res_blocks: {UNET_RES_BLOCKS}
        channel_mult: {unet_mult}
        num_heads: {UNET_HEADS}
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: 64
        use_checkpoint: false
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 64
          in_channels: 3
          out_ch: 3
          ch: {VAE_BLOCKS[0]}
          ch_mult: {vae_mult}
          num_res_blocks: {VAE_RES_BLOCKS}
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: {text_version!r}
"""


def lora_name(module: str, part: str) -> str:
    """kohya's name for a module of the U-Net (`unet`) or the text encoder (`te`)."""
    if part == "te" and not module.startswith("text_model."):
        module = f"text_model.{module}"
    return f"lora_{part}_{module.replace('.', '_')}"


def write_checkpoint(path: Path, weights: dict[str, Tensor], text_version: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    path.with_suffix(".yaml").write_text(sidecar(text_version))
