"""PiDiNet edges: Su et al., "Pixel Difference Networks for Efficient Edge Detection" (arXiv 2108.07009).

The published ``table5_pidinet.pth``: 60 channels, kinds of convolution in the order central,
angular, radial, vanilla ("carv4"), with dilation and spatial attention.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess.lines import Pixels, in_levels
from sd_cloud.engines.diffusion.preprocess.loading import Bench, bytes_of, unwrapped

Kind = Literal["central", "angular", "radial", "vanilla"]

KINDS: tuple[Kind, ...] = ("central", "angular", "radial", "vanilla")
WIDTH = 60
FUSED_WIDTH = 24
DILATIONS = (5, 7, 9, 11)
CLOCKWISE = [3, 0, 1, 6, 4, 2, 7, 8, 5]
OUTER_RING = [0, 2, 4, 10, 14, 20, 22, 24]
INNER_RING = [6, 7, 8, 11, 13, 16, 17, 18]


def difference_kernel(weight: Tensor, kind: Kind) -> Tensor:
    """The plain convolution kernel that a pixel difference convolution with 3 x 3 weights is."""
    if kind == "vanilla":
        return weight
    flat = weight.flatten(2)
    if kind == "central":
        flat = flat.clone()
        flat[:, :, 4] -= weight.sum(dim=(2, 3))
    elif kind == "angular":
        flat = flat - flat[:, :, CLOCKWISE]
    else:
        wide = weight.new_zeros(*weight.shape[:2], 25)
        wide[:, :, OUTER_RING], wide[:, :, INNER_RING] = flat[:, :, 1:], -flat[:, :, 1:]
        return wide.view(*weight.shape[:2], 5, 5)
    return flat.view_as(weight)


class DifferenceConv(nn.Module):
    def __init__(self, kind: Kind, before: int, after: int, groups: int = 1) -> None:
        super().__init__()
        self.kind, self.groups = kind, groups
        self.weight = nn.Parameter(torch.zeros(after, before // groups, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        kernel = difference_kernel(self.weight, self.kind)
        return functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2, groups=self.groups)


class Block(nn.Module):
    """A separable difference convolution with a shortcut, halving the size where widths change."""

    def __init__(self, kind: Kind, before: int, after: int, *, shrinks: bool) -> None:
        super().__init__()
        self.shrinks = shrinks
        if shrinks:
            self.shortcut = nn.Conv2d(before, after, 1)
        self.conv1 = DifferenceConv(kind, before, before, groups=before)
        self.conv2 = nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.shrinks:
            x = functional.max_pool2d(x, 2)
        made = self.conv2(functional.relu(self.conv1(x)))
        return torch.as_tensor(made + (self.shortcut(x) if self.shrinks else x))


class Dilation(nn.Module):
    def __init__(self, before: int, after: int = FUSED_WIDTH) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 1)
        for number, reach in enumerate(DILATIONS, start=1):
            conv = nn.Conv2d(after, after, 3, padding=reach, dilation=reach, bias=False)
            self.add_module(f"conv2_{number}", conv)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(functional.relu(x))
        first, second, third, fourth = (self.get_submodule(f"conv2_{one}")(x) for one in range(1, 5))
        return torch.as_tensor(first + second + third + fourth)


class Attention(nn.Module):
    def __init__(self, width: int = FUSED_WIDTH) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4, 1)
        self.conv2 = nn.Conv2d(4, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(x * self.conv2(self.conv1(functional.relu(x))).sigmoid())


class Reduce(nn.Module):
    def __init__(self, width: int = FUSED_WIDTH) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.conv(x))


class PiDiNet(nn.Module):
    """Edge strength [1, 1, H, W] in 0..1 from BGR pixels [1, 3, H, W] in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.init_block = DifferenceConv(KINDS[0], 3, WIDTH)
        self.levels: list[list[str]] = [[], [], [], []]
        widths = (WIDTH, 2 * WIDTH, 4 * WIDTH, 4 * WIDTH)
        before = WIDTH
        for layer in range(1, 16):
            level, place = divmod(layer, 4)
            name = f"block{level + 1}_{place if level == 0 else place + 1}"
            shrinks = level > 0 and place == 0
            self.add_module(name, Block(KINDS[place], before, widths[level], shrinks=shrinks))
            self.levels[level].append(name)
            before = widths[level]
        self.dilations = nn.ModuleList(Dilation(width) for width in widths)
        self.attentions = nn.ModuleList(Attention() for _ in widths)
        self.conv_reduces = nn.ModuleList(Reduce() for _ in widths)
        self.classifier = nn.Conv2d(4, 1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.init_block(pixels)
        edges = []
        for level, names in enumerate(self.levels):
            for name in names:
                x = self.get_submodule(name)(x)
            edge = self.conv_reduces[level](self.attentions[level](self.dilations[level](x)))
            edges.append(functional.interpolate(edge, pixels.shape[2:], mode="bilinear", align_corners=False))
        return torch.as_tensor(self.classifier(torch.cat(edges, dim=1)).sigmoid())


def soft_edges(bench: Bench, image: Pixels) -> Pixels:
    return bytes_of(_edges(bench, image))


def safe_edges(bench: Bench, image: Pixels) -> Pixels:
    return bytes_of(in_levels(_edges(bench, image).cpu().numpy()))


def sketch(bench: Bench, image: Pixels) -> Pixels:
    """Black and white: what T2I-Adapter's sketch model was trained on."""
    return bytes_of((_edges(bench, image) > 0.5).float())


def _edges(bench: Bench, image: Pixels) -> Tensor:
    bgr = np.asarray(image[:, :, ::-1])
    edges: Tensor = bench.net(PiDiNet, unwrapped)(bench.pixels(bgr) / 255.0)[0, 0]
    return edges
