"""Control-LoRAs: ControlNets stored as low-rank differences from the U-Net they steer (Stability AI).

A layer ``NAME`` comes as ``NAME.up`` [out, rank, …] and ``NAME.down`` [rank, in, …], whose product is
added to the U-Net's own weight; what has no such pair is stored whole. How parts that the file lacks
are filled follows sd-webui-controlnet's ``controlnet_lora.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sd_cloud.errors import BadRequest

MARK = "lora_controlnet"
SHARED = ("conv_in.", "time_embedding.", "class_embedding.", "down_blocks.", "mid_block.")
"""What a ControlNet has in common with the U-Net, in diffusers' names."""
Renamed = Callable[[Mapping[str, Any]], dict[str, Any]]


def is_control_lora(tensors: Mapping[str, Tensor]) -> bool:
    return MARK in tensors


def whole_controlnet(
    tensors: Mapping[str, Tensor], unet: Mapping[str, Tensor], renamed: Renamed, name: str, field: str
) -> dict[str, Tensor]:
    """The ControlNet that the file describes, in diffusers' names.

    ``unet``: the U-Net's weights in diffusers' names. ``renamed`` brings LDM's names to diffusers',
    whatever the values are. Raises BadRequest when a pair does not fit the U-Net.
    """
    stored: dict[str, Any] = {}
    for key, value in tensors.items():
        if key == MARK or key.endswith(".down"):
            continue
        if key.endswith(".up") and (down := tensors.get(f"{key[:-3]}.down")) is not None:
            stored[f"{key[:-3]}.weight"] = (value, down)
        else:
            stored[key] = value
    state: dict[str, Tensor] = {}
    for key, value in renamed(stored).items():
        state[key] = _summed(key, value, unet, name, field) if isinstance(value, tuple) else value
    return {**_filled(unet, state), **state}


def _summed(
    key: str, pair: tuple[Tensor, Tensor], unet: Mapping[str, Tensor], name: str, field: str
) -> Tensor:
    up, down = pair
    own = unet.get(key)
    if own is None or up.shape[0] * down[0].numel() != own.numel():
        raise BadRequest(
            f"{name} is made for checkpoints of another family: its {key} is {up.shape[0]} x "
            f"{down[0].numel()}, the checkpoint's {'absent' if own is None else tuple(own.shape)}",
            field=field,
        )
    product = up.to(own.device, torch.float32).flatten(1) @ down.to(own.device, torch.float32).flatten(1)
    return own.float() + product.reshape(own.shape)


def _filled(unet: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the file lacks: the U-Net's own weights; norms and biases as they are before training."""
    filled = {}
    for key, own in unet.items():
        if not key.startswith(SHARED) or key in state:
            continue
        if own.ndim > 1:
            filled[key] = own.float()
        else:
            like = torch.ones_like if key.endswith("weight") else torch.zeros_like
            filled[key] = like(own, dtype=torch.float32)
    return filled
