"""T2I-Adapters: Mou et al., "T2I-Adapter" (arXiv 2302.08453), from one file.

Two layouts: TencentARC's (``body.0.block1…``, with or without ``adapter.`` in front) and diffusers'
(``adapter.body.0.resnets.0…``). Light ones have a network of their own, see ``adapter_light.py``.
Widths and the channels of the hint come from the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.controlnet.adapter_light import LightNet
from sd_cloud.engines.diffusion.controlnet.call import Call, Residuals, inpaint_hint
from sd_cloud.engines.diffusion.controlnet.hinted import Hinted
from sd_cloud.engines.diffusion.text_encoders import assign
from sd_cloud.errors import BadRequest, CheckpointBroken

BLOCKS_PER_LEVEL = 2
LEVELS = 4
SHRINKING = {8: (1, 2, 3), 16: (2,)}
"""Levels that begin by halving the size, by how many pixels one side of a latent's cell has."""
SOFT_WEIGHTS = (0.25, 0.62, 0.825, 1.0)
SDXL_CHANNELS = (256, 768)


class Block(nn.Module):
    def __init__(self, before: int, after: int, kernel: int, *, shrinks: bool, by_conv: bool) -> None:
        super().__init__()
        self.down_opt: nn.Module = nn.Identity()
        if shrinks:
            self.down_opt = _Shrink(before) if by_conv else nn.AvgPool2d(2, 2)
        self.in_conv = (
            nn.Conv2d(before, after, kernel, padding=kernel // 2) if before != after else nn.Identity()
        )
        self.block1 = nn.Conv2d(after, after, 3, padding=1)
        self.block2 = nn.Conv2d(after, after, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_conv(self.down_opt(x))
        return torch.as_tensor(self.block2(functional.relu(self.block1(x))) + x)


class _Shrink(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.op(x))


class AdapterNet(nn.Module):
    """Four levels of features from a hint [1, 1 or 3, H, W] in 0..1."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        width, channels = (int(side) for side in state["conv_in.weight"].shape[:2])
        kernel = int(state["body.0.block2.weight"].shape[2])
        by_conv = any(key.endswith("down_opt.op.weight") for key in state)
        self.cell = 16 if channels in SDXL_CHANNELS else 8
        self.hint_channels = channels // self.cell**2
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        widths = (width, 2 * width, 4 * width, 4 * width)
        blocks: list[Block] = []
        for level in range(LEVELS):
            for place in range(BLOCKS_PER_LEVEL):
                before = widths[max(level - 1, 0)] if place == 0 else widths[level]
                shrinks = place == 0 and level in SHRINKING[self.cell]
                blocks.append(Block(before, widths[level], kernel, shrinks=shrinks, by_conv=by_conv))
        self.body = nn.ModuleList(blocks)

    def forward(self, hint: Tensor) -> list[Tensor]:
        x = self.conv_in(functional.pixel_unshuffle(hint[:, : self.hint_channels], self.cell))
        levels = []
        for place, block in enumerate(self.body):
            x = block(x)
            if place % BLOCKS_PER_LEVEL == BLOCKS_PER_LEVEL - 1:
                levels.append(x)
        return levels


@dataclass(eq=False)
class Adapter:
    """A loaded T2I-Adapter."""

    name: str
    net: AdapterNet | LightNet
    bound: bool = False


def is_adapter(state: Mapping[str, Tensor]) -> bool:
    return any(re.match(r"(adapter\.)?body\.0\.", key) for key in state)


def load_adapter(
    state: Mapping[str, Tensor],
    file: str,
    unet: UNet2DConditionModel,
    *,
    device: torch.device,
    dtype: torch.dtype,
    field: str,
) -> Adapter:
    """Raises CheckpointBroken and BadRequest (other widths)."""
    own = _plain_names(state)
    try:
        with torch.device("meta"):
            net = AdapterNet(own) if "conv_in.weight" in own else LightNet(own)
    except KeyError as error:
        raise CheckpointBroken(f"{file}: its T2I-Adapter lacks the tensor {error.args[0]}") from error
    first = "conv_in.weight" if "conv_in.weight" in own else "body.0.out_conv.weight"
    width = int(own[first].shape[0])
    if width != unet.config["block_out_channels"][0] or (net.cell == 16) != (len(unet.down_blocks) == 3):
        raise BadRequest(
            f"{file} is made for checkpoints of another family: it is {width} channels wide and reads "
            f"{net.cell} px a cell, the checkpoint's widths are {tuple(unet.config['block_out_channels'])}",
            field=field,
        )
    assign(net, own, file, "T2I-Adapter", dtype)
    return Adapter(file.rsplit(".", 1)[0], net.eval().requires_grad_(False).to(device))


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """TencentARC's names, also for those of diffusers, which numbers blocks within their level."""
    plain = {key.removeprefix("adapter."): value for key, value in state.items()}
    if not any(".resnets." in key for key in plain):
        return plain
    if "conv_in.weight" not in plain:
        return {key.replace(".resnets.", ".body."): value for key, value in plain.items()}
    renamed = {}
    for key, value in plain.items():
        found = re.match(r"body\.(\d+)\.(?:resnets\.(\d+)\.)?(.*)", key)
        if found:
            key = f"body.{BLOCKS_PER_LEVEL * int(found[1]) + int(found[2] or 0)}.{found[3]}"
        renamed[key] = value
    return renamed


@dataclass
class Adapting(Hinted):
    """One adapter unit. ``features`` are made once, of the map of the first call that it works in.

    As in the extension, units with one file share them.
    """

    adapter: Adapter
    features: list[Tensor]

    def added(self, call: Call) -> Residuals:
        """At the end of each level of the encoder (SDXL: and after the middle)."""
        if not self.features:
            hint = inpaint_hint(self.hint_for(call)).to(call.latents)
            self.features += self.adapter.net(hint)
        weights = self._weights(self.unit.softened(call.hires))
        levels = [feature * weight for feature, weight in zip(self.features, weights, strict=True)]
        if self.unit.only_on_prompt:
            levels = [level * call.marks for level in levels]
        sizes = _sizes(call.latents.shape[2:], self.adapter.net.cell)
        sized = [_sized(level, size) for level, size in zip(levels, sizes, strict=True)]
        return Residuals((), None, tuple(self.within_region(level) for level in sized))

    def _weights(self, softened: bool) -> Sequence[float]:
        own = self.unit.layer_weights
        if own is not None:
            if len(own) not in (LEVELS, LEVELS + 1):  # the extension describes five and uses four
                raise BadRequest(
                    f"has {len(own)} numbers; a T2I-Adapter has {LEVELS} levels",
                    field=f"{self.unit.field}.advanced_weighting",
                )
            return own[:LEVELS]
        return [self.unit.weight * (soft if softened else 1.0) for soft in SOFT_WEIGHTS]


def _sizes(latent: Sequence[int], cell: int) -> list[tuple[int, int]]:
    """Sizes of the U-Net's levels where an adapter's features are added."""

    def halved(size: tuple[int, int]) -> tuple[int, int]:
        return -(-size[0] // 2), -(-size[1] // 2)

    whole = (int(latent[0]), int(latent[1]))
    half = halved(whole)
    quarter = halved(half)
    return [half, half, quarter, quarter] if cell == 16 else [whole, half, quarter, halved(quarter)]


def _sized(level: Tensor, size: tuple[int, int]) -> Tensor:
    return level if tuple(level.shape[2:]) == size else functional.interpolate(level, size, mode="nearest")
