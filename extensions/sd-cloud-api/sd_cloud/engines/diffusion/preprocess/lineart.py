"""Line drawings of photographs and of anime, and TEED's edges.

``lineart``: Chan et al., "Learning to generate line drawings" (arXiv 2203.12691). ``lineart_anime``:
pix2pix's U-Net, trained by Mukosame/Anime2Sketch. ``lineart_anime_denoise``:
Li et al., "Deep Extraction of Manga Structural Lines" (SIGGRAPH 2017).
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench, bytes_of, unwrapped
from sd_cloud.engines.diffusion.preprocess.pix2pix import UNet

ANIME_MULTIPLE_PX = 256


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]
        other = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]
        self.conv_block = nn.Sequential(*half, nn.ReLU(), *other)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(x + self.conv_block(x))


class Drawing(nn.Module):
    """A line drawing [1, 1, H, W] in 0..1, black on white, from RGB pixels in 0..1."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.model0 = nn.Sequential(
            nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width), nn.ReLU()
        )
        down: list[nn.Module] = []
        for before in (width, 2 * width):
            down += [nn.Conv2d(before, 2 * before, 3, stride=2, padding=1)]
            down += [nn.InstanceNorm2d(2 * before), nn.ReLU()]
        self.model1 = nn.Sequential(*down)
        self.model2 = nn.Sequential(*(Residual(4 * width) for _ in range(3)))
        up: list[nn.Module] = []
        for before in (4 * width, 2 * width):
            up += [nn.ConvTranspose2d(before, before // 2, 3, stride=2, padding=1, output_padding=1)]
            up += [nn.InstanceNorm2d(before // 2), nn.ReLU()]
        self.model3 = nn.Sequential(*up)
        self.model4 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(width, 1, 7), nn.Sigmoid())

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.model2(self.model1(self.model0(pixels)))
        return torch.as_tensor(self.model4(self.model3(x)))


def drawing(bench: Bench, image: Pixels) -> Pixels:
    """White lines on black."""
    return 255 - bytes_of(bench.net(Drawing)(bench.pixels(image) / 255.0)[0, 0])


def anime_network() -> UNet:
    """A line drawing [1, 1, H, W] in -1..1 from RGB pixels in -1..1, sides multiples of 256."""
    return UNet(3, 1, 8)


def anime_drawing(bench: Bench, image: Pixels) -> Pixels:
    """White lines on black."""
    height, width = image.shape[:2]
    size = [math.ceil(side / ANIME_MULTIPLE_PX) * ANIME_MULTIPLE_PX for side in (width, height)]
    sized = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC))
    net = bench.net(anime_network, unwrapped)
    line = net(bench.pixels(sized) / 127.5 - 1.0)[0, 0] * 127.5 + 127.5
    back = np.asarray(cv2.resize(line.cpu().numpy(), (width, height), interpolation=cv2.INTER_CUBIC))
    return np.asarray(255 - back.clip(0, 255).astype(np.uint8))


class NormConv(nn.Module):
    """Batch norm, leaky ReLU and a convolution, in the order the manga network has them."""

    def __init__(self, before: int, after: int, size: int = 3, stride: int = 1, *, grows: bool = False):
        super().__init__()
        layers = [nn.BatchNorm2d(before, eps=1e-3), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(before, after, size, stride=stride, padding=size // 2)]
        self.model = nn.Sequential(*layers, *([nn.Upsample(scale_factor=2)] if grows else []))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.model(x))


class Shortcut(nn.Module):
    def __init__(self, before: int, after: int, stride: int = 1, *, grows: bool = False) -> None:
        super().__init__()
        self.model = None
        if before != after or stride != 1:
            conv = nn.Conv2d(before, after, 1, stride=stride)
            self.model = nn.Sequential(conv, *([nn.Upsample(scale_factor=2)] if grows else []))

    def forward(self, x: Tensor, made: Tensor) -> Tensor:
        return made + (x if self.model is None else self.model(x))


class MangaBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int = 1, *, grows: bool = False) -> None:
        super().__init__()
        self.conv1 = NormConv(before, after, stride=stride, grows=grows)
        self.residual = NormConv(after, after)
        self.shortcut = Shortcut(before, after, stride, grows=grows)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.shortcut(x, self.residual(self.conv1(x))))


class MangaBlocks(nn.Module):
    """A stage: its last block halves the size, or its first doubles it, or neither."""

    def __init__(self, before: int, after: int, count: int, *, way: str) -> None:
        super().__init__()
        self.model = nn.Sequential(
            *(
                MangaBlock(
                    before if place == 0 else after,
                    after,
                    2 if way == "down" and place == count - 1 else 1,
                    grows=way == "up" and place == 0,
                )
                for place in range(count)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.model(x))


class MangaLines(nn.Module):
    """Dark lines [1, 1, H, W] in 0..255 from grey pixels in 0..255, sides multiples of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.block0 = MangaBlocks(1, 24, 2, way="level")
        self.block1 = MangaBlocks(24, 48, 3, way="down")
        self.block2 = MangaBlocks(48, 96, 5, way="down")
        self.block3 = MangaBlocks(96, 192, 7, way="down")
        self.block4 = MangaBlocks(192, 384, 12, way="down")
        self.block5 = MangaBlocks(384, 192, 7, way="up")
        self.block6 = MangaBlocks(192, 96, 5, way="up")
        self.block7 = MangaBlocks(96, 48, 3, way="up")
        self.block8 = MangaBlocks(48, 24, 2, way="up")
        self.block9 = MangaBlocks(24, 16, 2, way="level")
        self.conv15 = NormConv(16, 1, size=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x0 = self.block0(pixels)
        x1 = self.block1(x0)
        x2 = self.block2(x1)
        x3 = self.block3(x2)
        x = x3 + self.block5(self.block4(x3))
        x = x2 + self.block6(x)
        x = x1 + self.block7(x)
        x = x0 + self.block8(x)
        return torch.as_tensor(self.conv15(self.block9(x)))


def manga_lines(bench: Bench, image: Pixels) -> Pixels:
    """White lines on black."""
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    line = bench.net(MangaLines, unwrapped)(bench.pixels(grey[:, :, None]))[0, 0]
    return np.asarray((255 - line.cpu().numpy()).clip(0, 255), np.uint8)
