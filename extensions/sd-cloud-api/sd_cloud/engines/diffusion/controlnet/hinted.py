"""A ControlNet unit with its map, at work in a job."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sd_cloud.engines.diffusion.controlnet.after import Correction
from sd_cloud.engines.diffusion.controlnet.call import Call, Residuals
from sd_cloud.engines.diffusion.controlnet.units import ControlUnit


@dataclass
class Hinted:
    """A unit with its map as a tensor [1, 3 or 4, H, W] in 0..1, and another for the hires pass.

    Kinds of models say in :meth:`added` what they add to the U-Net.
    """

    unit: ControlUnit
    hint: Tensor
    hires_hint: Tensor | None
    correction: Correction | None = field(default=None, kw_only=True)

    def hint_for(self, call: Call) -> Tensor:
        return self.hires_hint if call.hires and self.hires_hint is not None else self.hint

    def within_region(self, layer: Tensor) -> Tensor:
        """Nothing outside the unit's ``effective_region_mask``."""
        if self.unit.region is None:
            return layer
        mask = torch.from_numpy(np.asarray(self.unit.region, np.float32) / 255.0)[None, None].to(layer)
        return layer * functional.interpolate(mask, size=layer.shape[-2:], mode="bilinear")

    def settle(self, call: Call) -> None:
        """What is to be drawn and encoded before the U-Net's first call, units in their order."""
        if self.correction is not None:
            self.correction.latent(self.hint_for(call))

    def works(self, call: Call) -> bool:
        """Whether the unit takes part in this call: its window, and its choice of passes."""
        chosen = self.unit.hires != "Both" and self.hires_hint is not None
        if chosen and call.hires != (self.unit.hires == "High res only"):
            return False
        return self.unit.guidance_start <= call.progress <= self.unit.guidance_end

    def added(self, call: Call) -> Residuals | None:
        """What is added inside the U-Net at a call that the unit works in."""
        return None
