"""M-LSD straight lines: Gu et al., "Towards Light-Weight and Real-Time Line Segment Detection" (2106.00186).

The large network of ``mlsd_large_512_fp32.pth``: a MobileNetV2 that also sees a channel of ones.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench

MOST_LINES = 200
# MobileNetV2's stages as far as they go here: expansion, width, count, stride.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
SEEN_LAYERS = (1, 3, 6, 10, 13)


class Conv6(nn.Sequential):
    """Convolution, batch norm and ReLU6; TensorFlow's padding where it halves the size."""

    def __init__(self, before: int, after: int, size: int = 3, stride: int = 1, groups: int = 1) -> None:
        padding = 0 if stride == 2 else (size - 1) // 2
        conv = nn.Conv2d(before, after, size, stride, padding, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(after), nn.ReLU6())
        self.pads = stride == 2

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (0, 1, 0, 1)) if self.pads else x
        for layer in self:
            x = layer(x)
        return x


class Inverted(nn.Module):
    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = before * expansion
        layers: list[nn.Module] = [Conv6(before, hidden, size=1)] if expansion != 1 else []
        layers += [Conv6(hidden, hidden, stride=stride, groups=hidden)]
        layers += [nn.Conv2d(hidden, after, 1, bias=False), nn.BatchNorm2d(after)]
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv(x)
        return x + made if self.adds else made


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [Conv6(4, 32, stride=2)]
        before = 32
        for expansion, width, count, stride in STAGES:
            for place in range(count):
                layers.append(Inverted(before, width, stride if place == 0 else 1, expansion))
                before = width
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        seen = []
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in SEEN_LAYERS:
                seen.append(x)
        return seen


def norm_conv(before: int, after: int, size: int, reach: int = 1) -> nn.Sequential:
    padding = reach * (size // 2)
    conv = nn.Conv2d(before, after, size, padding=padding, dilation=reach)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


class Join(nn.Module):
    def __init__(self, fine: int, coarse: int, *, grows: bool = True) -> None:
        super().__init__()
        self.conv1, self.conv2 = norm_conv(coarse, 64, 1), norm_conv(fine, 64, 1)
        self.grows = grows

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        coarse = self.conv1(coarse)
        if self.grows:
            coarse = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=True)
        return torch.cat([self.conv2(fine), coarse], dim=1)


class Refine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = norm_conv(128, 128, 3), norm_conv(128, 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.conv2(self.conv1(x) + x))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = norm_conv(64, 64, 3, reach=5), norm_conv(64, 64, 3)
        self.conv3 = nn.Conv2d(64, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.conv3(self.conv2(self.conv1(x))))


class Mlsd(nn.Module):
    """[1, 9, H/2, W/2] from [1, 4, H, W] in -1..1: lines' centres, then the way to both of their ends."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.block15, self.block16 = Join(64, 96, grows=False), Refine()
        self.block17, self.block18 = Join(32, 64), Refine()
        self.block19, self.block20 = Join(24, 64), Refine()
        self.block21, self.block22 = Join(16, 64), Refine()
        self.block23 = Head()

    def forward(self, pixels: Tensor) -> Tensor:
        c1, c2, c3, c4, c5 = self.backbone(pixels)
        x = self.block16(self.block15(c4, c5))
        x = self.block18(self.block17(c3, x))
        x = self.block20(self.block19(c2, x))
        x = self.block22(self.block21(c1, x))
        return torch.as_tensor(self.block23(x)[:, 7:])


def straight_lines(bench: Bench, image: Pixels, least_score: float, least_length: float) -> Pixels:
    """``least_length`` is in pixels of the half-size map, from start to end."""
    seen = np.concatenate([image, np.ones((*image.shape[:2], 1))], axis=2)
    out = bench.net(Mlsd)(bench.pixels(seen) / 127.5 - 1.0)
    drawn = np.zeros(image.shape[:2], np.uint8)
    for line in _lines(out, least_score, least_length):
        x0, y0, x1, y1 = (int(value) for value in 2 * line)
        cv2.line(drawn, (x0, y0), (x1, y1), 255, 1)
    return drawn


def _lines(out: Tensor, least_score: float, least_length: float) -> list[NDArray[np.float64]]:
    heat = out[:, 0].sigmoid()
    heat = (heat * (functional.max_pool2d(heat, 3, stride=1, padding=1) == heat)).flatten()
    scores, places = torch.topk(heat, min(MOST_LINES, heat.numel()))
    ends = out[0, 1:5].permute(1, 2, 0).float().cpu().numpy()
    lines = []
    for score, place in zip(scores.tolist(), places.tolist(), strict=True):
        y, x = divmod(place, out.shape[3])
        way = ends[y, x]
        if score > least_score and np.hypot(*(way[:2] - way[2:])) > least_length:
            lines.append(way + np.array([x, y, x, y], np.float64))
    return lines
