"""What a ControlNet sees of one call of the U-Net, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sd_cloud.engines.diffusion.controlnet.units import ControlUnit


@dataclass(frozen=True)
class Call:
    """One call of the U-Net. ``latents``: [N, C, h, w] as the U-Net gets them; ``timesteps``: [N].

    ``context``: [N, tokens, width]; ``labels``: SDXL's [N, width]; ``positive``: [N] bool, False
    where the row is known to be the negative prompt's. ``progress``: the number of the last step that the
    sampler has reported, as a share of its steps (0.0 in the first two steps, as in the webui).
    """

    latents: Tensor
    timesteps: Tensor
    context: Tensor
    labels: Tensor | None
    positive: Tensor
    progress: float = 0.0
    hires: bool = False

    @property
    def marks(self) -> Tensor:
        """[N, 1, 1, 1]: 1 for the prompt's rows, 0 for the negative prompt's."""
        return self.positive.to(self.latents).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Residuals:
    """What is added inside the U-Net.

    ``down`` and ``middle``: to what its encoder's layers hand over, and after the middle (ControlNets).
    ``levels``: at the end of each level of its encoder (T2I-Adapters).
    """

    down: tuple[Tensor, ...]
    middle: Tensor | None
    levels: tuple[Tensor, ...] = ()


@dataclass
class Hinted:
    """A unit with its map as a tensor [1, 3 or 4, H, W] in 0..1, and another for the hires pass."""

    unit: ControlUnit
    hint: Tensor
    hires_hint: Tensor | None

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

    def works(self, call: Call) -> bool:
        """Whether the unit takes part in this call: its window, and its choice of passes."""
        chosen = self.unit.hires != "Both" and self.hires_hint is not None
        if chosen and call.hires != (self.unit.hires == "High res only"):
            return False
        return self.unit.guidance_start <= call.progress <= self.unit.guidance_end


def inpaint_hint(hint: Tensor) -> Tensor:
    """What inpainting models were trained on: the picture, and -1 where it is to be painted."""
    if hint.shape[1] != 4:
        return hint
    masked = (hint[:, 3:] > 0.5).to(hint)
    return hint[:, :3] * (1 - masked) - masked
