"""HED edges: Xie & Tu, "Holistically-Nested Edge Detection" (arXiv 1504.06375).

In the form of ControlNet's ``ControlNetHED.pth``: RGB in, five side outputs averaged before the
sigmoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess.lines import Pixels, in_levels
from sd_cloud.engines.diffusion.preprocess.loading import Bench, bytes_of

STAGES = ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3))


class Stage(nn.Module):
    """A VGG stage: convolutions of one width, and a one-channel projection of what they see."""

    def __init__(self, before: int, width: int, count: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(nn.Conv2d(before if place == 0 else width, width, 3, padding=1) for place in range(count))
        )
        self.projection = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = functional.relu(conv(x))
        return x, self.projection(x)


class Hed(nn.Module):
    """Edge logits at five scales from RGB pixels in 0..255, shape (1, 3, height, width)."""

    def __init__(self, stages: tuple[tuple[int, int, int], ...] = STAGES) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        for number, (before, width, count) in enumerate(stages, start=1):
            self.add_module(f"block{number}", Stage(before, width, count))
        self.count = len(stages)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = pixels - self.norm
        edges = []
        for number in range(1, self.count + 1):
            if number > 1:
                x = functional.max_pool2d(x, 2)
            x, edge = self.get_submodule(f"block{number}")(x)
            edges.append(edge)
        return edges


def soft_edges(bench: Bench, image: Pixels) -> Pixels:
    return bytes_of(_edges(bench, image))


def safe_edges(bench: Bench, image: Pixels) -> Pixels:
    return bytes_of(in_levels(_edges(bench, image)))


def _edges(bench: Bench, image: Pixels) -> NDArray[np.float64]:
    return mean_sigmoid(bench.net(Hed)(bench.pixels(image)), image)


def mean_sigmoid(sides: Sequence[Tensor], image: NDArray[Any]) -> NDArray[np.float64]:
    """Edge strength in 0..1 at the image's size from logits [1, 1, h, w] at several sizes."""
    size = (image.shape[1], image.shape[0])
    planes = [side[0, 0].float().cpu().numpy() for side in sides]
    sized = [cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in planes]
    logits = np.mean(np.stack(sized, axis=2), axis=2).astype(np.float64)
    with np.errstate(over="ignore"):  # what overflows is 0 in the end
        return np.asarray(1 / (1 + np.exp(-logits)))
