"""ControlNet checkpoints from one file into diffusers' ControlNetModel.

Two layouts: LDM's (``input_blocks…``, with or without ``control_model.`` in front: the files of
lllyasviel/ControlNet) and diffusers' (``controlnet_cond_embedding…``). Control-LoRAs and ControlNet
Unions, which have either, become such networks as well. Widths, depths and hint
channels come from the tensors; what tensors do not tell, the heads, from the U-Net it steers.
Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models" (arXiv 2302.05543).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from torch import Tensor

from sd_cloud.engines.diffusion.controlnet.adapter import Adapter, is_adapter, load_adapter
from sd_cloud.engines.diffusion.controlnet.control_lora import is_control_lora, whole_controlnet
from sd_cloud.engines.diffusion.controlnet.ip_adapter import IPAdapter, is_ip_adapter, load_ip_adapter
from sd_cloud.engines.diffusion.controlnet.lllite import LLLite, is_lllite, load_lllite
from sd_cloud.engines.diffusion.controlnet.style_adapter import MARK as STYLE_MARK
from sd_cloud.engines.diffusion.controlnet.style_adapter import StyleAdapter, load_style_adapter
from sd_cloud.engines.diffusion.controlnet.union import (
    UnionNet,
    is_union,
    own_part,
    union_of,
    union_state,
)
from sd_cloud.engines.diffusion.text_encoders import assign
from sd_cloud.engines.diffusion.weights_file import Tensors, read_tensors
from sd_cloud.errors import BadRequest, CheckpointBroken, NotImplementedHere

LDM_PREFIX = "control_model."
DIFFUSERS_MARK = "controlnet_cond_embedding.conv_in.weight"
LDM_MARK = "input_hint_block.0.weight"

SD2_HEADS = 8
OTHER_KINDS = (("motion_modules", "a SparseCtrl model, for the frames of AnimateDiff's videos"),)


@dataclass(eq=False)
class ControlNet:
    """A loaded ControlNet.

    ``averaged``: its outputs are averaged over the picture (shuffle models). ``bound``: its weights
    were made with one U-Net's and are for that one alone.
    """

    name: str
    net: ControlNetModel | UnionNet
    averaged: bool = False
    bound: bool = False


ControlModel = ControlNet | Adapter | LLLite | IPAdapter | StyleAdapter


def load_control_model(
    path: Path, unet: UNet2DConditionModel, *, device: torch.device, dtype: torch.dtype, field: str = "model"
) -> ControlModel:
    """What is in ``path``, for ``unet``. Raises what loading each kind raises."""
    tensors = {key.removeprefix(LDM_PREFIX): value for key, value in read_tensors(path).items()}
    if is_ip_adapter(tensors):
        return load_ip_adapter(tensors, path, unet, device=device, field=field)
    if STYLE_MARK in tensors:
        return load_style_adapter(tensors, path, unet, device=device, field=field)
    if is_adapter(tensors):
        return load_adapter(tensors, path.name, unet, device=device, dtype=dtype, field=field)
    if is_lllite(tensors):
        return load_lllite(tensors, path.name, unet, device=device, dtype=dtype, field=field)
    return load_controlnet(path, unet, device=device, dtype=dtype, field=field, tensors=tensors)


def load_controlnet(
    path: Path,
    unet: UNet2DConditionModel,
    *,
    device: torch.device,
    dtype: torch.dtype,
    field: str = "model",
    tensors: Tensors | None = None,
) -> ControlNet:
    """Build the ControlNet in ``path`` for ``unet``.

    Raises CheckpointBroken (unreadable or incomplete), NotImplementedHere (an adapter of another
    kind) and BadRequest (made for checkpoints of other widths), each naming the file.
    """
    tensors = read_tensors(path) if tensors is None else tensors
    # Of these two the file holds what is to be added to the U-Net's own weights.
    by_rank, by_difference = is_control_lora(tensors), "difference" in tensors
    if by_rank:
        own = unet.state_dict()
        state = whole_controlnet(tensors, own, lambda given: _from_ldm(given, path.name), path.name, field)
    else:
        state = _in_diffusers_names(tensors, path.name, field)
    config = controlnet_config(state, unet.config, path.name)
    _check_fit(config, unet.config, path.name, field)
    with torch.device("meta"):
        net: ControlNetModel | UnionNet = ControlNetModel(**config)
    if by_difference:
        own = unet.state_dict()
        state = {key: value + own[key].to(value) if key in own else value for key, value in state.items()}
    if is_union(state):
        net, state = union_of(net, state), union_state(state)
    assign(net, state, path.name, "ControlNet", dtype)
    net = net.eval().requires_grad_(False).to(device)
    averaged = "shuffle" in path.stem.lower() and "class_embed_type" not in config and not by_rank
    return ControlNet(path.stem, net, averaged=averaged, bound=by_rank or by_difference)


def _in_diffusers_names(tensors: Tensors, name: str, field: str) -> dict[str, Tensor]:
    plain = {key.removeprefix(LDM_PREFIX): value for key, value in tensors.items()}
    for mark, kind in OTHER_KINDS:
        if any(mark in key for key in plain):
            raise NotImplementedHere(f"{name} is {kind}; that is not served", field=field)
    if LDM_MARK in plain:
        own = {key.replace(".in_proj.", ".in_proj_"): plain[key] for key in plain if own_part(key)}
        state = {**_from_ldm(plain, name), **own}
    elif DIFFUSERS_MARK in plain:
        state = {key: value for key, value in plain.items() if key != "difference"}
    else:
        raise CheckpointBroken(f"{name} is not a ControlNet: it has neither {LDM_MARK} nor {DIFFUSERS_MARK}")
    # The pooled prompt and sizes of SDXL come in as one vector here, as the U-Net takes them.
    return {re.sub(r"^add_embedding\.", "class_embedding.", key): value for key, value in state.items()}


def _from_ldm(plain: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A ControlNet's values, whatever they are, under diffusers' names."""
    levels = [key for key in plain if re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", key)]
    if not levels:
        raise CheckpointBroken(f"{name}: its ControlNet is incomplete, it has no downsampling block")
    per_level = min(int(key.split(".")[1]) for key in levels) - 1
    try:
        state = dict(convert_controlnet_checkpoint(dict(plain), {"layers_per_block": per_level}))
    except (KeyError, TypeError) as error:
        raise CheckpointBroken(f"{name}: its ControlNet is incomplete, {error} is missing") from error
    for old, new in (("label_emb.0.0", "linear_1"), ("label_emb.0.2", "linear_2")):
        for part in ("weight", "bias"):
            if f"{old}.{part}" in plain:
                state[f"class_embedding.{new}.{part}"] = plain[f"{old}.{part}"]
    return {key: value for key, value in state.items() if value is not None}


def controlnet_config(state: Mapping[str, Tensor], unet: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Configuration of a ControlNetModel from its tensors; ``unet`` is the steered one's.

    ``state`` has diffusers' keys and may be on the meta device. Raises CheckpointBroken.
    """
    try:
        levels = 1 + max(int(found[1]) for key in state if (found := re.match(r"down_blocks\.(\d+)\.", key)))
        widths = tuple(
            int(state[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0]) for level in range(levels)
        )
        hint = [state[DIFFUSERS_MARK].shape[0]]
        hint += [
            state[key].shape[0]
            for key in sorted(state)
            if (found := re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d+)\.weight", key))
            and int(found[1]) % 2
        ]
    except (KeyError, ValueError) as error:
        raise CheckpointBroken(f"{name}: its ControlNet is incomplete, {error} is missing") from error
    depths = [
        _count(state, rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks") for level in range(levels)
    ]
    middle = _count(state, r"mid_block\.attentions\.0\.transformer_blocks")
    context = next((value for key, value in state.items() if key.endswith("attn2.to_k.weight")), None)
    projection = next((value for key, value in state.items() if key.endswith("proj_in.weight")), None)
    layers: tuple[int, ...] = tuple(max(depth, 1) for depth in depths)
    config: dict[str, Any] = {
        "in_channels": state["conv_in.weight"].shape[1],
        "conditioning_channels": state[DIFFUSERS_MARK].shape[1],
        "conditioning_embedding_out_channels": tuple(hint),
        "block_out_channels": widths,
        "layers_per_block": _count(state, r"down_blocks\.0\.resnets"),
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        "transformer_layers_per_block": (*layers[:-1], middle) if middle else layers,
        "cross_attention_dim": unet["cross_attention_dim"] if context is None else context.shape[1],
        "use_linear_projection": projection is not None and projection.ndim == 2,
    }
    label = state.get("class_embedding.linear_1.weight")
    config["attention_head_dim"] = _heads(unet, widths, sdxl=label is not None)
    if label is not None:
        config["class_embed_type"] = "projection"
        config["projection_class_embeddings_input_dim"] = label.shape[1]
    return config


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered parts there are below a prefix."""
    return len({found[1] for key in state if (found := re.match(rf"{prefix}\.(\d+)\.", key))})


def _heads(unet: Mapping[str, Any], widths: tuple[int, ...], *, sdxl: bool) -> int | tuple[int, ...]:
    """Heads of each level: for SD 1 the U-Net's, for SDXL as wide as the U-Net's.

    For SD 2 it is not as many as the U-Net has (heads of 64 channels), but what sd-webui-controlnet has.
    """
    heads = unet["attention_head_dim"]
    if isinstance(heads, int):
        return heads
    if not sdxl:
        return SD2_HEADS
    head_width = unet["block_out_channels"][0] // heads[0]
    return tuple(max(width // head_width, 1) for width in widths)


def _check_fit(config: Mapping[str, Any], unet: Mapping[str, Any], name: str, field: str) -> None:
    wanted = (tuple(unet["block_out_channels"]), unet["cross_attention_dim"])
    has = (config["block_out_channels"], config["cross_attention_dim"])
    if wanted != has:
        raise BadRequest(
            f"{name} is made for checkpoints of another family: its widths are {has[0]} and its context "
            f"{has[1]}, the checkpoint's {wanted[0]} and {wanted[1]}",
            field=field,
        )
