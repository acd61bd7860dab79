"""MiDaS depth and normals (``dpt_hybrid-midas-501f0c75.pt``).

A ResNet of standardised weights (Kolesnikov et al., "Big Transfer", arXiv 1912.11370) in front of a
vision transformer and DPT's decoder; see :mod:`sd_cloud.engines.diffusion.preprocess.dpt`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess.dpt import Block, Readout, Scratch, as_map
from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench, Part, bytes_of

WIDTH, HEADS, LAYERS, GRID = 768, 12, 12, 24
STAGES = ((64, 256, 3, 1), (256, 512, 4, 2), (512, 1024, 9, 2))  # before, after, blocks, stride
SEEN_BLOCKS = (8, 11)
STEEPNESS = 2 * math.pi
UNUSED = ("pretrained.model.head.", "pretrained.model.norm.")  # what classification needs


def padded_same(x: Tensor, size: int, stride: int, value: float = 0.0) -> Tensor:
    """As TensorFlow pads "SAME": the odd pixel to the right and below."""
    missing = [max((math.ceil(side / stride) - 1) * stride + size - side, 0) for side in x.shape[2:]]
    down, across = missing
    return functional.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2), value=value)


class StdConv(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance 1 for each output."""

    def __init__(self, before: int, after: int, size: int, stride: int = 1) -> None:
        super().__init__(before, after, size, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        variance, mean = torch.var_mean(flat, dim=1, correction=0, keepdim=True)
        weight = ((flat - mean) / (variance + 1e-8).sqrt()).view_as(self.weight)
        size, stride = self.kernel_size[0], self.stride[0]
        return functional.conv2d(padded_same(x, size, stride), weight, stride=stride)


class Joint(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv, self.norm = StdConv(before, after, 1, stride), nn.GroupNorm(32, after)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.norm(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        inner = after // 4
        self.downsample = Joint(before, after, stride) if before != after else nn.Identity()
        self.conv1, self.norm1 = StdConv(before, inner, 1), nn.GroupNorm(32, inner)
        self.conv2, self.norm2 = StdConv(inner, inner, 3, stride), nn.GroupNorm(32, inner)
        self.conv3, self.norm3 = StdConv(inner, after, 1), nn.GroupNorm(32, after)

    def forward(self, x: Tensor) -> Tensor:
        made = functional.relu(self.norm1(self.conv1(x)))
        made = functional.relu(self.norm2(self.conv2(made)))
        return functional.relu(self.norm3(self.conv3(made)) + self.downsample(x))


class Stage(nn.Module):
    def __init__(self, before: int, after: int, count: int, stride: int) -> None:
        super().__init__()
        first = Bottleneck(before, after, stride)
        self.blocks = nn.Sequential(first, *(Bottleneck(after, after, 1) for _ in range(count - 1)))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Part()
        self.stem.conv, self.stem.norm = StdConv(3, 64, 7, 2), nn.GroupNorm(32, 64)
        self.stages = nn.ModuleList(Stage(*stage) for stage in STAGES)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = functional.relu(self.stem.norm(self.stem.conv(x)))
        x = functional.max_pool2d(padded_same(x, 3, 2, -math.inf), 3, stride=2)
        seen = []
        for stage in self.stages:
            x = stage.get_submodule("blocks")(x)
            seen.append(x)
        return seen


class Encoder(nn.Module):
    """Four levels: two of the ResNet's, two of the transformer's."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, GRID * GRID + 1, WIDTH))
        self.patch_embed = Part()
        self.patch_embed.backbone = ResNet()
        self.patch_embed.proj = nn.Conv2d(STAGES[-1][1], WIDTH, 1)
        self.blocks = nn.ModuleList(Block(WIDTH, HEADS) for _ in range(LAYERS))

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        size = (pixels.shape[2] // 16, pixels.shape[3] // 16)
        first, second, third = self.patch_embed.backbone(pixels)
        patches = self.patch_embed.proj(third).flatten(2).transpose(1, 2)
        grid = as_map(self.pos_embed[:, 1:], (GRID, GRID))
        grid = functional.interpolate(grid, size, mode="bilinear").flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token, patches], dim=1) + torch.cat([self.pos_embed[:, :1], grid], dim=1)
        seen = []
        for place, block in enumerate(self.blocks):
            x = block(x)
            if place in SEEN_BLOCKS:
                seen.append(x)
        return [first, second], seen


class Enlarge(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


class Midas(nn.Module):
    """Inverse depth [1, H, W] from RGB pixels [1, 3, H, W] in -1..1, sides multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained = Part()
        self.pretrained.model = Encoder()
        # Places 1 and 2 of the published file's sequences hold no weights.
        fine = {"0": Readout(WIDTH), "3": nn.Conv2d(WIDTH, WIDTH, 1)}
        coarse = {"0": Readout(WIDTH), "3": nn.Conv2d(WIDTH, WIDTH, 1)}
        coarse["4"] = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.pretrained.act_postprocess3 = nn.ModuleDict(fine)
        self.pretrained.act_postprocess4 = nn.ModuleDict(coarse)
        self.scratch = Scratch((256, 512, WIDTH, WIDTH))
        self.scratch.output_conv = nn.Sequential(
            nn.Conv2d(256, 128, 3, padding=1),
            Enlarge(),
            nn.Conv2d(128, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
            nn.ReLU(),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        size = (pixels.shape[2] // 16, pixels.shape[3] // 16)
        levels, tokens = self.pretrained.model(pixels)
        parts = (self.pretrained.act_postprocess3, self.pretrained.act_postprocess4)
        for part, token in zip(parts, tokens, strict=True):
            level = part["3"](as_map(part["0"](token), size))
            levels.append(part["4"](level) if "4" in part else level)
        return torch.as_tensor(self.scratch.output_conv(self.scratch.fused(levels)[-1])[:, 0])


def without_classifier(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(UNUSED)}


def depth(bench: Bench, image: Pixels) -> Pixels:
    """Near is white."""
    return bytes_of(_scaled(_inverse_depth(bench, image)))


def normals(bench: Bench, image: Pixels, background: float) -> Pixels:
    """Normals as colours, flat where the scaled inverse depth is below ``background``."""
    found = _inverse_depth(bench, image)
    far = _scaled(found) < background
    across, down = (cv2.Sobel(found, cv2.CV_32F, *way, ksize=3) for way in ((1, 0), (0, 1)))
    across, down = (np.where(far, np.float32(0), slope) for slope in (across, down))
    normal = np.stack([across, down, np.full_like(found, STEEPNESS)], axis=2)
    normal /= np.sum(normal**2.0, axis=2, keepdims=True) ** 0.5
    return np.asarray((normal * 127.5 + 127.5).clip(0, 255).astype(np.uint8)[:, :, ::-1])


def _inverse_depth(bench: Bench, image: Pixels) -> NDArray[np.float32]:
    found = bench.net(Midas, without_classifier)(bench.pixels(image) / 127.5 - 1.0)[0]
    return np.asarray(found.float().cpu().numpy())


def _scaled(found: NDArray[np.float32]) -> NDArray[np.float32]:
    moved = found - found.min()
    return np.asarray(moved / max(float(moved.max()), 1e-12), np.float32)
