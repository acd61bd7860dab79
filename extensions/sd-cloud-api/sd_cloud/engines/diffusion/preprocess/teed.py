"""TEED edges: Soria et al., "Tiny and Efficient Model for the Edge Detection Generalization" (2308.06468).

``softedge_anyline`` is MistoLine's: the same network retrained, with small strokes of
``lineart_standard`` laid over it.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from sd_cloud.engines.diffusion.preprocess.hed import mean_sigmoid
from sd_cloud.engines.diffusion.preprocess.lines import Pixels, in_levels
from sd_cloud.engines.diffusion.preprocess.loading import Bench, Part, bytes_of

UP_PADDING = (0, 0, 1, 3, 7)
SMALL_STROKE_PX = 12


def smish(x: Tensor) -> Tensor:
    """Wang et al., "Smish: a novel activation function" (2022)."""
    return x * torch.tanh(torch.log(1 + torch.sigmoid(x)))


class Smish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return smish(x)


class DoubleConv(nn.Module):
    def __init__(self, before: int, after: int, stride: int = 1, *, active: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, stride=stride)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(smish(self.conv1(x)))
        return smish(x) if self.active else x


class Conv(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.conv(x))


class Dense(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        layer = Part()
        layer.conv1 = nn.Conv2d(before, after, 3, padding=2)
        layer.conv2 = nn.Conv2d(after, after, 3)
        self.denselayer1 = layer

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        made = self.denselayer1.conv2(smish(self.denselayer1.conv1(smish(x))))
        return torch.as_tensor(0.5 * (made + beside))


class Up(nn.Module):
    """Doubles the size ``times`` times, down to one channel."""

    def __init__(self, before: int, times: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for turn in range(times):
            after = 1 if turn == times - 1 else 16
            up = nn.ConvTranspose2d(after, after, 2**times, stride=2, padding=UP_PADDING[times])
            layers += [nn.Conv2d(before, after, 1), Smish(), up]
            before = after
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.features(x))


class Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.DWconv1 = nn.Conv2d(3, 24, 3, padding=1, groups=3)
        self.DWconv2 = nn.Conv2d(24, 24, 3, padding=1, groups=24)

    def forward(self, x: Tensor) -> Tensor:
        first = self.DWconv1(smish(x))
        second = self.DWconv2(smish(first))
        return smish((second + first).sum(1, keepdim=True))


class Teed(nn.Module):
    """Edge logits [1, 1, H, W] four times, the fused ones last, from RGB pixels in 0..255."""

    def __init__(self) -> None:
        super().__init__()
        self.block_1 = DoubleConv(3, 16, stride=2)
        self.block_2 = DoubleConv(16, 32, active=False)
        self.dblock_3 = Dense(32, 48)
        self.side_1 = Conv(16, 32, 2)
        self.pre_dense_3 = Conv(32, 48, 1)
        self.up_block_1 = Up(16, 1)
        self.up_block_2 = Up(32, 1)
        self.up_block_3 = Up(48, 2)
        self.block_cat = Fusion()

    def forward(self, pixels: Tensor) -> list[Tensor]:
        first = self.block_1(pixels)
        second = self.block_2(first)
        smaller = nn.functional.max_pool2d(second, 3, stride=2, padding=1)
        third = self.dblock_3(smaller + self.side_1(first), self.pre_dense_3(smaller))
        sides = [self.up_block_1(first), self.up_block_2(second), self.up_block_3(third)]
        return [*sides, self.block_cat(torch.cat(sides, dim=1))]


def edges(bench: Bench, image: Pixels, steps: int) -> Pixels:
    """``steps``: into how many levels the edges are put, 0 for none."""
    found = mean_sigmoid(bench.net(Teed)(bench.pixels(image)), image)
    return bytes_of(in_levels(found, steps) if steps else found)


def anyline(bench: Bench, image: Pixels, strokes: Pixels, steps: int) -> Pixels:
    """``strokes``: ``lineart_standard`` of the same image, [H, W, 3].

    What is left of its faintest strokes is drawn in the faintest grey: the original's sum for numbers
    in 0..1 is made in bytes.
    """
    soft = edges(bench, image, steps)
    labels, _ = ndimage.label(strokes[:, :, 0] == 1)
    large = np.bincount(labels.ravel()) >= SMALL_STROKE_PX
    large[0] = False
    return np.where(large[labels], 1, soft).astype(np.uint8)
