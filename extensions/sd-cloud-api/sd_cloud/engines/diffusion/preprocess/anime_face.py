"""The parts of an anime face (siyeong0's Anime-Face-Segmentation, ``UNet.pth``): hair, eyes, mouth, face,
skin, clothes.

A U-Net on the encoder of MobileNetV2 (Sandler et al., arXiv 1801.04381).
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench, unwrapped
from sd_cloud.engines.diffusion.preprocess.palettes import ANIME_FACE, coloured

SIDE_PX = 512  # of the shorter side that the network sees
EXPANSION = 6
STEM = 32
#: Stages of the encoder: (width, stride) of each layer.
STAGES = (
    ((24, 2), (24, 1)),
    ((32, 2), (32, 1), (32, 1)),
    ((64, 2), (64, 1), (64, 1), (64, 1), (96, 1), (96, 1), (96, 1)),
    ((160, 2), (160, 1), (160, 1)),
)
WIDTHS = (16, 24, 32, 96, 160)


def conv(before: int, after: int, side: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    made = nn.Conv2d(before, after, side, stride, side // 2, groups=groups, bias=False)
    return nn.Sequential(made, nn.BatchNorm2d(after), nn.ReLU6())


class Inverted(nn.Module):
    def __init__(self, before: int, after: int, stride: int, expansion: int = EXPANSION) -> None:
        super().__init__()
        inner = before * expansion
        widening = [conv(before, inner, 1)] if expansion > 1 else []
        looking = conv(inner, inner, 3, stride, groups=inner)
        self.conv = nn.Sequential(
            *widening, looking, nn.Conv2d(inner, after, 1, bias=False), nn.BatchNorm2d(after)
        )
        self.adds = before == after and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(x + self.conv(x) if self.adds else self.conv(x))


def up(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.UpsamplingNearest2d(scale_factor=2),
        nn.Conv2d(before, after, 3, padding=1),
        nn.InstanceNorm2d(after),
        nn.LeakyReLU(0.1),
    )


class AnimeFace(nn.Module):
    """How likely each part is [1, 7, H, W] from RGB pixels in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.en_block0 = nn.Sequential(conv(3, STEM, 3, 2), Inverted(STEM, WIDTHS[0], 1, expansion=1))
        before = WIDTHS[0]
        for number, stage in enumerate(STAGES, start=1):
            layers = []
            for width, stride in stage:
                layers.append(Inverted(before, width, stride))
                before = width
            self.add_module(f"en_block{number}", nn.Sequential(*layers))
        self.de_block4 = up(WIDTHS[4], WIDTHS[3])
        for number in (3, 2, 1):
            self.add_module(f"de_block{number}", up(2 * WIDTHS[number], WIDTHS[number - 1]))
        self.de_block0 = nn.Sequential(
            nn.UpsamplingNearest2d(scale_factor=2),
            nn.Conv2d(2 * WIDTHS[0], len(ANIME_FACE), 3, padding=1),
            nn.Softmax2d(),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        levels = [self.en_block0(pixels)]
        for number in (1, 2, 3, 4):
            levels.append(self.get_submodule(f"en_block{number}")(levels[-1]))
        x = levels.pop()
        for number in (4, 3, 2, 1):
            finer = levels.pop()
            x = self.get_submodule(f"de_block{number}")(x)
            x = functional.interpolate(x, finer.shape[2:], mode="bilinear", align_corners=True)
            x = torch.cat((x, finer), dim=1)
        return torch.as_tensor(self.de_block0(x))


def parts(bench: Bench, image: Pixels) -> Pixels:
    """At the size the network sees: the extension cuts that as if it were the image's."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    size = int(SIDE_PX * width / shorter), int(SIDE_PX * height / shorter)
    seen = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    likely = bench.net(AnimeFace, unwrapped)(bench.pixels(np.asarray(seen)) / 255)
    return coloured(likely[0].argmax(dim=0), ANIME_FACE)
