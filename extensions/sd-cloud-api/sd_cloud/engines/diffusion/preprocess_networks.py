"""Preprocessors that are networks, where their weights are in ``models/ControlNet/annotators``.

HED edges: Xie & Tu, "Holistically-Nested Edge Detection" (arXiv 1504.06375), in the form of
ControlNet's ``ControlNetHED.pth``: RGB in, five side outputs averaged before the sigmoid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.weights_file import read_tensors
from sd_cloud.errors import CheckpointBroken

Pixels = NDArray[np.uint8]

HED_STAGES = ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3))


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

    def __init__(self, stages: tuple[tuple[int, int, int], ...] = HED_STAGES) -> None:
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


@lru_cache(maxsize=1)
def _hed(path: Path, mtime_ns: int) -> Hed:
    net = Hed()
    try:
        net.load_state_dict({key: value.float() for key, value in read_tensors(path).items()})
    except RuntimeError as error:
        raise CheckpointBroken(f"{path.name} is not ControlNet's HED network: {error}") from error
    return net.eval().requires_grad_(False)


def _hed_edges(path: Path, image: Pixels) -> NDArray[np.float64]:
    """Edge strength in 0..1, the image's size."""
    height, width = image.shape[:2]
    with torch.inference_mode():
        pixels = torch.from_numpy(image.copy()).float().permute(2, 0, 1).unsqueeze(0)
        sides = [side[0, 0].numpy() for side in _hed(path, path.stat().st_mtime_ns)(pixels)]
    sized = [cv2.resize(side, (width, height), interpolation=cv2.INTER_LINEAR) for side in sides]
    return np.asarray(1 / (1 + np.exp(-np.mean(np.stack(sized, axis=2), axis=2).astype(np.float64))))


def _to_pixels(edges: NDArray[Any]) -> Pixels:
    return np.asarray((edges * 255.0).clip(0, 255), np.uint8)


def soft_edges(path: Path, image: Pixels) -> Pixels:
    return _to_pixels(_hed_edges(path, image))


def safe_edges(path: Path, image: Pixels, steps: int = 2) -> Pixels:
    """Edges in ``steps`` levels, which carry less of the photograph's content."""
    edges = _hed_edges(path, image).astype(np.float32) * float(steps + 1)
    return _to_pixels(edges.astype(np.int32).astype(np.float32) / float(steps))


def scribble(path: Path, image: Pixels) -> Pixels:
    """Edges thinned to their ridges, smoothed and drawn black and white."""
    ridges = non_maximum(soft_edges(path, image).astype(np.float32), 3.0)
    drawn = np.where(ridges > 127, 255, 0).astype(np.uint8)
    smooth = cv2.GaussianBlur(drawn, (0, 0), 3.0)
    return np.where(np.asarray(smooth) > 4, 255, 0).astype(np.uint8)


def non_maximum(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Blurred values where they are the largest along one of four directions, else 0."""
    blurred = np.asarray(cv2.GaussianBlur(values, (0, 0), sigma))
    return ridges(blurred)


def ridges(values: NDArray[Any]) -> NDArray[Any]:
    """The values that are the largest of their three neighbours along any of four lines, else 0."""
    lines = (
        [[0, 0, 0], [1, 1, 1], [0, 0, 0]],
        [[0, 1, 0], [0, 1, 0], [0, 1, 0]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
    )
    kept = np.zeros_like(values)
    for line in lines:
        highest = np.asarray(cv2.dilate(values, np.array(line, np.uint8)))
        kept = np.where(highest == values, values, kept)
    return kept


NETWORKS: Mapping[str, Callable[[Path, Pixels], Pixels]] = {
    "hed": soft_edges,
    "hed_safe": safe_edges,
    "scribble_hed": scribble,
}
"""Each takes the weights and RGB pixels and gives one channel of the same size."""
