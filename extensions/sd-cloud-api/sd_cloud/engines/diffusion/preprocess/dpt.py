"""The parts that depth networks share: vision transformer blocks, and DPT's way back to a picture.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv 2010.11929); Ranftl et al., "Vision
Transformers for Dense Prediction" (arXiv 2103.13413). Names are those of the published files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess.loading import Part


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        made = functional.scaled_dot_product_attention(query, key, value)
        return torch.as_tensor(self.proj(made.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.fc2(functional.gelu(self.fc1(x))))


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """A transformer layer; ``scaled`` has DINOv2's factor for each channel."""

    def __init__(self, width: int, heads: int, *, scaled: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads), Mlp(width)
        self.ls1 = Scale(width) if scaled else nn.Identity()
        self.ls2 = Scale(width) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + torch.as_tensor(self.ls2(self.mlp(self.norm2(x))))


class ResidualConv(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.conv2(functional.relu(self.conv1(functional.relu(x)))) + x)


class Fusion(nn.Module):
    """Joins a coarse map with a finer level and enlarges it: to ``size`` [h, w], or twofold."""

    def __init__(self, width: int, *, joins: bool = True) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        if joins:
            self.resConfUnit1 = ResidualConv(width)
        self.resConfUnit2 = ResidualConv(width)

    def forward(self, x: Tensor, finer: Tensor | None = None, size: torch.Size | None = None) -> Tensor:
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        x = self.resConfUnit2(x)
        wanted = (2 * x.shape[2], 2 * x.shape[3]) if size is None else tuple(size)
        x = functional.interpolate(x, wanted, mode="bilinear", align_corners=True)
        return torch.as_tensor(self.out_conv(x))


class Scratch(Part):
    """DPT's decoder: four levels, coarse to fine, to one map.

    ``exact``: each step enlarges to the size of the finer level (Depth Anything), not twofold.
    """

    def __init__(self, levels: tuple[int, int, int, int], width: int = 256, *, exact: bool = False) -> None:
        super().__init__()
        self.exact = exact
        for number, before in enumerate(levels, start=1):
            self.add_module(f"layer{number}_rn", nn.Conv2d(before, width, 3, padding=1, bias=False))
            self.add_module(f"refinenet{number}", Fusion(width))

    def fused(self, levels: list[Tensor]) -> list[Tensor]:
        """What each step gives, the coarsest first; the last is twice as fine as the finest level."""
        seen = [self.get_submodule(f"layer{number}_rn")(level) for number, level in enumerate(levels, 1)]
        made = []
        x = None
        for number in (4, 3, 2, 1):
            size = seen[number - 2].shape[2:] if self.exact and number > 1 else None
            fusion = self.get_submodule(f"refinenet{number}")
            x = fusion(seen[number - 1], None, size) if x is None else fusion(x, seen[number - 1], size)
            made.append(x)
        return made


class Readout(nn.Module):
    """The class token joined to each patch's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())

    def forward(self, tokens: Tensor) -> Tensor:
        patches = tokens[:, 1:]
        return torch.as_tensor(self.project(torch.cat([patches, tokens[:, :1].expand_as(patches)], dim=-1)))


def as_map(patches: Tensor, size: tuple[int, int]) -> Tensor:
    """[1, h * w, C] to [1, C, h, w]."""
    return patches.transpose(1, 2).reshape(patches.shape[0], patches.shape[2], *size)
