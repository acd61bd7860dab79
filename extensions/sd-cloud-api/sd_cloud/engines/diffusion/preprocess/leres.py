"""LeReS depth: Yin et al., "Learning to Recover 3D Scene Shape from a Single Image" (arXiv 2012.09365).

The network of ``res101.pth``: a ResNeXt-101 32x8d (Xie et al., arXiv 1611.05431) and a decoder.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench, Part, unwrapped

STAGES = ((64, 3, 1), (128, 4, 2), (256, 23, 2), (512, 3, 2))  # planes, layers, stride
GROUPS, WIDTH_PER_GROUP, EXPANSION = 32, 8, 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, yet of pixels in 0..255
DEEPEST = 65535
FILE = "leres/res101.pth"

Plane = NDArray[np.float32]


class PictureNorm(nn.BatchNorm2d):
    """By the picture's own mean and variance: the extension leaves this network in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


class Bottleneck(nn.Module):
    def __init__(self, before: int, planes: int, stride: int) -> None:
        super().__init__()
        width, after = planes * WIDTH_PER_GROUP * GROUPS // 64, planes * EXPANSION
        self.conv1, self.bn1 = nn.Conv2d(before, width, 1, bias=False), PictureNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=GROUPS, bias=False)
        self.bn2 = PictureNorm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, after, 1, bias=False), PictureNorm(after)
        self.downsample: nn.Module = nn.Identity()
        if before != after:
            conv = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(conv, PictureNorm(after))

    def forward(self, x: Tensor) -> Tensor:
        made = functional.relu(self.bn1(self.conv1(x)))
        made = functional.relu(self.bn2(self.conv2(made)))
        return functional.relu(self.bn3(self.conv3(made)) + self.downsample(x))


class ResNeXt(nn.Module):
    """Features at a quarter, an eighth, a sixteenth and a thirty-second of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), PictureNorm(64)
        before = 64
        for number, (planes, layers, stride) in enumerate(STAGES, start=1):
            first = Bottleneck(before, planes, stride)
            before = planes * EXPANSION
            rest = (Bottleneck(before, planes, 1) for _ in range(layers - 1))
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(pixels))), 3, stride=2, padding=1)
        seen = []
        for number in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"layer{number}")(x)
            seen.append(x)
        return seen


class Transfer(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        first, second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.conv_branch = nn.Sequential(nn.Identity(), first, PictureNorm(width), nn.ReLU(), second)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv1(x))
        return functional.relu(x + self.conv_branch(x))


class Merge(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.ftb1, self.ftb2 = Transfer(before, width), Transfer(width, width)

    def forward(self, finer: Tensor, x: Tensor) -> Tensor:
        return twice(self.ftb2(self.ftb1(finer) + x))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv1 = Transfer(2048, 512), nn.Conv2d(512, 256, 3, padding=1)
        self.ffm2, self.ffm1, self.ffm0 = Merge(1024, 256), Merge(512, 256), Merge(256, 256)
        self.outconv = Part()
        first, last = nn.Conv2d(256, 128, 3, padding=1), nn.Conv2d(128, 1, 3, padding=1)
        self.outconv.adapt_conv = nn.Sequential(first, PictureNorm(128), nn.ReLU(), last)

    def forward(self, seen: list[Tensor]) -> Tensor:
        x = twice(self.conv1(self.conv(seen[3])))
        x = self.ffm0(seen[0], self.ffm1(seen[1], self.ffm2(seen[2], x)))
        return twice(self.outconv.adapt_conv(x))


def twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


class Leres(nn.Module):
    """Depth [1, 1, H, W] from normalised BGR pixels, sides multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.depth_model = Part()
        self.depth_model.encoder_modules = Part()
        self.depth_model.encoder_modules.encoder = ResNeXt()
        self.depth_model.decoder_modules = Decoder()

    def forward(self, pixels: Tensor) -> Tensor:
        seen = self.depth_model.encoder_modules.encoder(pixels)
        return torch.as_tensor(self.depth_model.decoder_modules(seen))


def depth(bench: Bench, image: Pixels, near: float, background: float) -> Pixels:
    """Near is white. ``near`` and ``background``: percent of the depth, at either end, that become black."""
    return drawn(estimate(bench, image, (image.shape[1], image.shape[0])), near, background)


def estimate(bench: Bench, image: Pixels, size: tuple[int, int]) -> Plane:
    """The network's depth of an image that it sees at ``size`` (width, height)."""
    sized = np.asarray(cv2.resize(image[:, :, ::-1], size), np.float32)
    normal = (sized - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    found = bench.net(Leres, unwrapped, file=FILE)(bench.pixels(normal))[0, 0].float().cpu().numpy()
    return np.asarray(cv2.resize(found, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_CUBIC))


def drawn(found: Plane, near: float, background: float) -> Pixels:
    span = float(found.max() - found.min())
    scaled = DEEPEST * (found - found.min()) / span if span > np.finfo(float).eps else np.zeros_like(found)
    levels = cv2.convertScaleAbs(scaled.astype(np.uint16), alpha=255.0 / DEEPEST)
    if near != 0:
        levels = cv2.threshold(levels, near / 100 * 255, 255, cv2.THRESH_TOZERO)[1]
    levels = cv2.bitwise_not(levels)
    if background != 0:
        levels = cv2.threshold(levels, background / 100 * 255, 255, cv2.THRESH_TOZERO)[1]
    return np.asarray(levels, np.uint8)
