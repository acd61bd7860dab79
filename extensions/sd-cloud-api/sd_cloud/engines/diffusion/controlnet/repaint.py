"""A unit with a mask on an inpainting checkpoint: what that sees of the picture becomes the unit's.

As sd-webui-controlnet does it (``hook.py``): in every call, whatever the unit's window and passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from sd_cloud.engines.diffusion.controlnet.call import Call
from sd_cloud.engines.diffusion.controlnet.hinted import Hinted

SEEING = 9
"""Channels of an inpainting checkpoint's input: the latent's 4, the mask, the masked picture's 4."""
CELL = 8


@dataclass
class Repaint:
    """``encode`` takes pixels [1, 3, H, W] in -1..1 to a latent."""

    unit: Hinted
    encode: Callable[[Tensor], Tensor]
    seen: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, unit: Hinted, channels: int, encode: Callable[[Tensor], Tensor]) -> Repaint | None:
        """None where the unit has no mask, or the checkpoint, with ``channels``, sees no picture."""
        return cls(unit, encode) if channels == SEEING and unit.hint.shape[1] == 4 else None

    def __call__(self, call: Call, latents: Tensor) -> Tensor:
        """``latents`` [N, 9, h, w] with the unit's mask and masked picture."""
        hint = self.unit.hint_for(call)
        size = tuple(hint.shape[-2:])
        if size not in self.seen:
            mask = (hint[:, 3:] > 0.5).to(hint)
            masked = self.encode((hint[:, :3] * 2 - 1) * (1 - mask))
            self.seen[size] = torch.cat([functional.max_pool2d(mask, CELL).to(masked), masked], dim=1)
        own = self.seen[size].to(latents).expand(latents.shape[0], -1, -1, -1)
        return torch.cat([latents[:, :4], own], dim=1)
