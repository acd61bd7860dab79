"""How the U-Net handles sides that do not halve evenly.

LDM doubles, convolves, and the webui then resizes the result to the skip connection it meets;
diffusers resizes before the convolution, which gives another picture (33 dB apart, measured).
"""

from __future__ import annotations

import torch.nn.functional as functional
from diffusers import UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn


class DoubleThenResize(nn.Module):
    """Double by nearest neighbour, convolve, then resize to the size that is wanted."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, hidden_states: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        doubled = functional.interpolate(hidden_states, scale_factor=2.0, mode="nearest")
        out: Tensor = self.conv(doubled)
        if output_size is not None and tuple(out.shape[-2:]) != tuple(output_size):
            out = functional.interpolate(out, size=tuple(output_size), mode="nearest")
        return out


def double_then_resize(unet: UNet2DConditionModel) -> None:
    """Replace the U-Net's upsamplers; the names of their weights stay the same."""
    for block in unet.up_blocks:
        if block.upsamplers is not None:
            block.upsamplers = nn.ModuleList(
                DoubleThenResize(one.conv) if isinstance(one, Upsample2D) else one for one in block.upsamplers
            )
