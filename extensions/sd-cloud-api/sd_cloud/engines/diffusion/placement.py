"""Device, precision and memory saving, from the webui's flags."""

from __future__ import annotations

import logging

import torch
from diffusers import UNet2DConditionModel

from sd_cloud.engines.diffusion.model import Placement, Saving
from sd_cloud.settings import Precision

log = logging.getLogger(__name__)


def placement_for(precision: Precision) -> Placement:
    """float32 on the CPU, on CUDA half precision, unless ``--no-half`` or ``--precision full``.

    ``--use-cpu all`` or ``sd`` means the CPU, whatever there is.
    ``--medvram``, ``--medvram-sdxl`` and ``--lowvram`` save memory of a GPU and mean nothing on the CPU.
    ``--no-half-vae`` keeps the VAE in float32.
    """
    if precision.on_cpu or not torch.cuda.is_available():
        return Placement()
    device = torch.device(f"cuda:{precision.device_id}" if precision.device_id else "cuda")
    full = precision.no_half or precision.precision == "full"
    dtype = torch.float32 if full else torch.float16
    saving: Saving = "lowvram" if precision.lowvram else "medvram" if precision.medvram else "none"
    saving_sdxl: Saving = "medvram" if saving == "none" and precision.medvram_sdxl else saving
    vae_dtype = torch.float32 if precision.no_half_vae else dtype
    return Placement(device, dtype, vae_dtype, saving, saving_sdxl, precision.xformers)


def fast_attention(unet: UNet2DConditionModel, placement: Placement) -> None:
    """``--xformers`` where it is installed; PyTorch's own attention otherwise."""
    if not placement.xformers or placement.device.type != "cuda":
        return
    try:
        unet.enable_xformers_memory_efficient_attention()
    except (ImportError, ModuleNotFoundError) as error:
        log.warning("--xformers: %s; PyTorch's own attention is used", error)
