"""Device and precision, from the webui's flags."""

from __future__ import annotations

import torch

from sd_cloud.engines.diffusion.model import Placement
from sd_cloud.settings import Precision


def placement_for(precision: Precision) -> Placement:
    """float32 on the CPU; on CUDA half precision, unless ``--no-half`` or ``--precision full``."""
    if not torch.cuda.is_available():
        return Placement()
    device = torch.device(f"cuda:{precision.device_id}" if precision.device_id else "cuda")
    if precision.no_half or precision.precision == "full":
        return Placement(device, torch.float32, torch.float32)
    return Placement(device, torch.float16, torch.float16)
