"""Device, precision and memory saving, from the webui's flags."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from diffusers import UNet2DConditionModel

from sd_cloud.engines.diffusion.model import Placement
from sd_cloud.settings import Precision

log = logging.getLogger(__name__)


def placement_for(precision: Precision) -> Placement:
    """float32 on the CPU; on CUDA half precision, unless ``--no-half`` or ``--precision full``.

    ``--medvram`` and ``--lowvram`` save memory of a GPU and mean nothing on the CPU.
    """
    if not torch.cuda.is_available():
        return Placement()
    device = torch.device(f"cuda:{precision.device_id}" if precision.device_id else "cuda")
    full = precision.no_half or precision.precision == "full"
    dtype = torch.float32 if full else torch.float16
    saving: Literal["none", "medvram", "lowvram"] = "none"
    if precision.lowvram:
        saving = "lowvram"
    elif precision.medvram:
        saving = "medvram"
    return Placement(device, dtype, dtype, saving, precision.xformers)


def fast_attention(unet: UNet2DConditionModel, placement: Placement) -> None:
    """``--xformers`` where it is installed; PyTorch's own attention otherwise."""
    if not placement.xformers or placement.device.type != "cuda":
        return
    try:
        unet.enable_xformers_memory_efficient_attention()
    except (ImportError, ModuleNotFoundError) as error:
        log.warning("--xformers: %s; PyTorch's own attention is used", error)
