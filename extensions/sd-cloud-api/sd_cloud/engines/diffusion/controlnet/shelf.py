"""Loaded control models, kept from one job to the next."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
from diffusers import UNet2DConditionModel

from sd_cloud.engines.diffusion.controlnet.model import ControlModel, load_control_model
from sd_cloud.engines.diffusion.eight_bits import EIGHT_BITS


class ControlNetShelf:
    """Loaded control models, the last few kept (``control_net_model_cache_size``)."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], ControlModel] = OrderedDict()

    def get(self, path: Path, unet: UNet2DConditionModel, keep: int, *, field: str) -> ControlModel:
        """Raises what :func:`load_control_model` raises."""
        parameter = next(one for one in unet.parameters() if one.dtype != EIGHT_BITS)
        heads = tuple(np.atleast_1d(unet.config["attention_head_dim"]).tolist())
        widths = tuple(unet.config["block_out_channels"])
        key = (path, path.stat().st_mtime_ns, widths, heads, parameter.device, parameter.dtype)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        while self._kept and len(self._kept) >= max(keep, 1):
            self._kept.popitem(last=False)
        found = load_control_model(path, unet, device=parameter.device, dtype=parameter.dtype, field=field)
        if keep > 0 and not found.bound:
            self._kept[key] = found
        return found

    def clear(self) -> None:
        self._kept.clear()
