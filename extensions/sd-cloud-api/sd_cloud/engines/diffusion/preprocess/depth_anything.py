"""Depth Anything, both versions (Yang et al., arXiv 2401.10891 and 2406.09414).

A DINOv2 transformer (Oquab et al., arXiv 2304.07193) with patches of 14 px, and DPT's decoder. How
wide and deep it is comes from the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess.dpt import Block, Scratch, as_map
from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench, Part
from sd_cloud.errors import CheckpointBroken

PATCH_PX, SIDE_PX = 14, 518
HEAD_WIDTH = 64
OFFSET = 0.1  # what DINOv2 adds to the grid's size when it resizes its positions
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
SECOND_VERSION_LAYERS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}


class Dino(nn.Module):
    def __init__(self, width: int, layers: int, positions: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = Part()
        self.patch_embed.proj = nn.Conv2d(3, width, PATCH_PX, stride=PATCH_PX)
        heads = max(width // HEAD_WIDTH, 1)
        self.blocks = nn.ModuleList(Block(width, heads, scaled=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor, seen: Sequence[int]) -> list[Tensor]:
        """Normalised patches after the layers ``seen``."""
        patches = self.patch_embed.proj(pixels)
        size = (patches.shape[2], patches.shape[3])
        x = torch.cat([self.cls_token, patches.flatten(2).transpose(1, 2)], dim=1) + self._positions(size)
        kept = []
        for place, block in enumerate(self.blocks):
            x = block(x)
            if place in seen:
                kept.append(self.norm(x)[:, 1:])
        return kept

    def _positions(self, size: tuple[int, int]) -> Tensor:
        side = round((self.pos_embed.shape[1] - 1) ** 0.5)
        if size == (side, side):
            return self.pos_embed
        grid = as_map(self.pos_embed[:, 1:], (side, side))
        factors = [(length + OFFSET) / side for length in size]
        grid = functional.interpolate(grid, scale_factor=factors, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


class Head(nn.Module):
    def __init__(self, before: int, levels: tuple[int, int, int, int], width: int) -> None:
        super().__init__()
        self.projects = nn.ModuleList(nn.Conv2d(before, level, 1) for level in levels)
        self.resize_layers = nn.ModuleList(
            (
                nn.ConvTranspose2d(levels[0], levels[0], 4, stride=4),
                nn.ConvTranspose2d(levels[1], levels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(levels[3], levels[3], 3, stride=2, padding=1),
            )
        )
        self.scratch = Scratch(levels, width, exact=True)
        self.scratch.output_conv1 = nn.Conv2d(width, width // 2, 3, padding=1)
        last = nn.Conv2d(32, 1, 1)
        self.scratch.output_conv2 = nn.Sequential(
            nn.Conv2d(width // 2, 32, 3, padding=1), nn.ReLU(), last, nn.ReLU()
        )

    def forward(self, tokens: list[Tensor], size: tuple[int, int]) -> Tensor:
        levels = [
            resize(project(as_map(token, size)))
            for token, project, resize in zip(tokens, self.projects, self.resize_layers, strict=True)
        ]
        x = self.scratch.output_conv1(self.scratch.fused(levels)[-1])
        full = (size[0] * PATCH_PX, size[1] * PATCH_PX)
        x = functional.interpolate(x, full, mode="bilinear", align_corners=True)
        return torch.as_tensor(self.scratch.output_conv2(x))


class DepthAnything(nn.Module):
    """Inverse depth [1, 1, H, W] from normalised RGB pixels, sides multiples of 14."""

    def __init__(self, state: Mapping[str, Tensor], *, second: bool = False) -> None:
        super().__init__()
        width = state["pretrained.cls_token"].shape[2]
        layers = len({key.split(".")[2] for key in state if key.startswith("pretrained.blocks.")})
        levels = tuple(state[f"depth_head.projects.{place}.weight"].shape[0] for place in range(4))
        if second and layers not in SECOND_VERSION_LAYERS:
            raise CheckpointBroken(f"a Depth Anything V2 network has 12, 24 or 40 layers, not {layers}")
        self.seen = SECOND_VERSION_LAYERS[layers] if second else tuple(range(layers - 4, layers))
        self.pretrained = Dino(width, layers, state["pretrained.pos_embed"].shape[1])
        fused = state["depth_head.scratch.layer1_rn.weight"].shape[0]
        self.depth_head = Head(width, levels, fused)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        size = (pixels.shape[2] // PATCH_PX, pixels.shape[3] // PATCH_PX)
        return torch.as_tensor(self.depth_head(self.pretrained(pixels, self.seen), size))


def first_version(state: Mapping[str, Tensor]) -> DepthAnything:
    return DepthAnything(state)


def second_version(state: Mapping[str, Tensor]) -> DepthAnything:
    return DepthAnything(state, second=True)


def depth(bench: Bench, image: Pixels, *, second: bool) -> Pixels:
    """Inverse depth in the colours of OpenCV's "inferno", as the extension draws it."""
    height, width = image.shape[:2]
    bgr = np.asarray(image[:, :, ::-1] / 255.0)  # the extension gives this network BGR
    sized = cv2.resize(bgr, _size(width, height), interpolation=cv2.INTER_CUBIC)
    normal = (np.asarray(sized) - np.array(MEAN)) / np.array(STD)
    net = bench.net_of_shape(second_version if second else first_version)
    found = net(bench.pixels(normal))
    found = functional.interpolate(found, (height, width), mode="bilinear", align_corners=False)[0, 0]
    scaled = (found - found.min()) / (found.max() - found.min()).clamp_min(1e-12) * 255.0
    grey = scaled.float().cpu().numpy().astype(np.uint8)
    return np.asarray(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)[:, :, ::-1])


def _size(width: int, height: int) -> tuple[int, int]:
    """At least 518 px each way, in whole patches."""
    factor = max(SIDE_PX / width, SIDE_PX / height)
    sides = [round(side * factor / PATCH_PX) * PATCH_PX for side in (width, height)]
    return max(sides[0], SIDE_PX), max(sides[1], SIDE_PX)
