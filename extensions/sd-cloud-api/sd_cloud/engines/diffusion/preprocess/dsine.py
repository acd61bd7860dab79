"""Surface normals: Bae & Davison, "Rethinking Inductive Biases for Surface Normal Estimation"
(arXiv 2403.00712), in the form of ``dsine.pt``.

`normal_bae`'s EfficientNet, a decoder that knows which way each pixel looks, and a recurrent unit that
turns each pixel's normal after its neighbours', a few times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess.detect import cut, resized, rgb
from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench, Part, bytes_of, unwrapped
from sd_cloud.engines.diffusion.preprocess.normal_bae import LAST, MEAN, STD, EfficientNet

STEP = 8  # the normals are found at an eighth of the size
HIDDEN, FEATURES = 64, 64
PATCH = 5  # neighbours each way, the pixel among them
LEAST_FACING = 0.01  # cosine between a normal and the ray to the camera
MULTIPLE_PX = 32


@dataclass(frozen=True)
class Camera:
    """Focal length and centre of a picture, in its pixels."""

    focal: tuple[float, float]
    centre: tuple[float, float]

    def scaled(self, across: float, down: float) -> Camera:
        (fx, fy), (cx, cy) = self.focal, self.centre
        return Camera((fx * across, fy * down), (cx * across, cy * down))


@dataclass(frozen=True)
class View:
    """A camera and the pixels [1, 2, H, W] it sees."""

    camera: Camera
    places: Tensor

    @classmethod
    def of(cls, pixels: Tensor, camera: Camera, step: int) -> View:
        """What is seen in every ``step``-th pixel of a picture [1, 3, H, W]."""
        height, width = pixels.shape[2] // step, pixels.shape[3] // step
        down, across = (torch.arange(side, device=pixels.device) + 0.5 for side in (height, width))
        places = torch.stack(torch.meshgrid(across, down, indexing="xy"))[None]
        return cls(camera.scaled(width / pixels.shape[3], height / pixels.shape[2]), places)

    def slopes(self, places: Tensor | None = None) -> Tensor:
        """How far each place lies from the axis, for a depth of 1: [1, 2, ...]."""
        places = self.places if places is None else places
        return (places - self.across(self.camera.centre, places)) / self.across(self.camera.focal, places)

    def rays(self) -> Tensor:
        slopes = self.slopes()
        return functional.normalize(torch.cat([slopes, torch.ones_like(slopes[:, :1])], dim=1), dim=1)

    def across(self, pair: tuple[float, float], like: Tensor) -> Tensor:
        return like.new_tensor(pair).view(1, 2, *[1] * (like.ndim - 2))


class WeightStandardConv(nn.Conv2d):
    """A convolution whose weights have mean 0 and deviation 1 for each output."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        deviation = centred.flatten(1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        return functional.conv2d(x, centred / deviation, self.bias, padding=1)


class Up(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (before, after):
            layers += [WeightStandardConv(width, after), nn.GroupNorm(8, after), nn.LeakyReLU()]
        self._net = nn.Sequential(*layers)

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        x = functional.interpolate(x, finer.shape[2:], mode="bilinear", align_corners=False)
        return torch.as_tensor(self._net(torch.cat([x, finer], dim=1)))


def head(before: int, inner: int, after: int) -> nn.Sequential:
    first, second = nn.Conv2d(before, inner, 3, padding=1), nn.Conv2d(inner, inner, 1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(inner, after, 1))


class Decoder(nn.Module):
    """First normals, features and a state, all at an eighth of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(LAST + 2, LAST, 1)
        self.up1, self.up2 = Up(LAST + 176 + 2, LAST // 2), Up(LAST // 2 + 64 + 2, LAST // 4)
        self.normal_head, self.feature_head, self.hidden_head = (
            head(LAST // 4 + 2, 128, width) for width in (3, FEATURES, HIDDEN)
        )

    def forward(self, seen: list[Tensor], slopes: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        eighth, sixteenth, last = (torch.cat(pair, dim=1) for pair in zip(seen, slopes, strict=True))
        x = torch.cat([self.up2(self.up1(self.conv2(last), sixteenth), eighth), slopes[0]], dim=1)
        return functional.normalize(self.normal_head(x), dim=1), self.feature_head(x), self.hidden_head(x)


class RecurrentUnit(nn.Module):
    """Cho et al.'s GRU (arXiv 1406.1078), of convolutions."""

    def __init__(self, hidden: int, seen: int) -> None:
        super().__init__()
        self.convz, self.convr, self.convq = (
            nn.Conv2d(hidden + seen, hidden, PATCH, padding=PATCH // 2) for _ in range(3)
        )

    def forward(self, state: Tensor, seen: Tensor) -> Tensor:
        both = torch.cat([state, seen], dim=1)
        update, reset = self.convz(both).sigmoid(), self.convr(both).sigmoid()
        proposed = self.convq(torch.cat([reset * state, seen], dim=1)).tanh()
        return torch.as_tensor((1 - update) * state + update * proposed)


class Dsine(nn.Module):
    """Normals [1, 3, H, W] from normalised RGB pixels, sides multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Part()
        self.encoder.original_model = EfficientNet()
        self.decoder = Decoder()
        self.gru = RecurrentUnit(HIDDEN, FEATURES + 2)
        around = PATCH * PATCH
        self.prob_head, self.xy_head, self.angle_head, self.up_prob_head = (
            head(HIDDEN + 2, 64, count) for count in (around, 2 * around, around, 9 * STEP * STEP)
        )

    def forward(self, pixels: Tensor, camera: Camera, rounds: int) -> Tensor:
        views = [View.of(pixels, camera, step) for step in (STEP, 2 * STEP, 4 * STEP)]
        seen = self.encoder.original_model(pixels)
        normal, features, state = self.decoder(seen[2:], [view.slopes() for view in views])
        view = views[0]
        normal = facing(normal, view.rays())
        features = torch.cat([features, view.slopes()], dim=1)
        for _ in range(rounds):
            state = self.gru(state, features)
            normal = self._turned(normal, torch.cat([state, view.slopes()], dim=1), view)
        return self._enlarged(normal, torch.cat([state, view.slopes()], dim=1))

    def _turned(self, normal: Tensor, state: Tensor, view: View) -> Tensor:
        """Each pixel's normal from its neighbours', turned as if the surface between were bent."""
        share, angle = self.prob_head(state).sigmoid()[:, None], self.angle_head(state).sigmoid()[:, None]
        way = functional.normalize(self.xy_head(state).unflatten(1, (2, -1)), dim=1)
        around = neighbours(normal)
        axis = turning_axis(around, neighbours(view.places), way, view)
        turned = facing(rotated(around, axis, angle * math.pi), view.rays()[:, :, None])
        return functional.normalize((share * turned).sum(dim=2), dim=1)

    def _enlarged(self, normal: Tensor, state: Tensor) -> Tensor:
        """Eight times as large: each pixel a mean of the nine around it, by shares found for it."""
        height, width = normal.shape[2:]
        shares = self.up_prob_head(state).view(1, 1, 9, STEP, STEP, height, width).softmax(dim=2)
        around = neighbours(normal, 3)[:, :, :, None, None]
        made = (shares * around).sum(dim=2).permute(0, 1, 4, 2, 5, 3)
        return functional.normalize(made.reshape(1, 3, STEP * height, STEP * width), dim=1)


def neighbours(x: Tensor, size: int = PATCH) -> Tensor:
    """The ``size`` x ``size`` pixels around each: [1, C, H, W] to [1, C, size * size, H, W]."""
    border = size // 2
    padded = functional.pad(x, (border,) * 4, mode="replicate")
    return functional.unfold(padded, size).view(1, x.shape[1], size * size, *x.shape[2:])


def turning_axis(normal: Tensor, places: Tensor, way: Tensor, view: View) -> Tensor:
    """The direction in the surface, as seen from a neighbour's pixel one step along ``way``; 0 where none.

    All are [1, C, 25, H, W].
    """
    step, slopes = way / view.across(view.camera.focal, way), view.slopes(places + way)
    facing_us = (slopes * normal[:, :2]).sum(dim=1) + normal[:, 2]
    facing_us = torch.where(facing_us.abs() < 1e-8, 1e-8 * facing_us.sign(), facing_us)
    deeper = (-(step * normal[:, :2]).sum(dim=1) / facing_us)[:, None]
    axis = functional.normalize(torch.cat([step + deeper * slopes, deeper], dim=1), dim=1)
    return torch.where(axis.isfinite().all(dim=1, keepdim=True), axis, torch.zeros_like(axis))


def rotated(normal: Tensor, axis: Tensor, angle: Tensor) -> Tensor:
    """Turned around an axis of length 1, or not where it is 0, by an angle in radians (Rodrigues)."""
    angle = angle * axis.norm(dim=1, keepdim=True)
    along = (axis * normal).sum(dim=1, keepdim=True)
    made = normal * angle.cos() + torch.linalg.cross(axis, normal, dim=1) * angle.sin()
    return functional.normalize(made + axis * along * (1 - angle.cos()), dim=1)


def facing(normal: Tensor, ray: Tensor) -> Tensor:
    """Normals that look away from the camera are turned until they just see it."""
    cosine = functional.cosine_similarity(normal, ray, dim=1)[:, None]
    least = (cosine - LEAST_FACING).relu() + LEAST_FACING
    return functional.normalize(normal + ray * (least - cosine), dim=1)


def normals(bench: Bench, image: Pixels, resolution: float, angle: float, rounds: int) -> Pixels:
    """Normals as colours. ``angle``: of view along the longer side, in degrees.

    The extension takes the camera from the picture's size before it brings that to ``resolution`` px, and
    cuts the map to that size, too: so do we.
    """
    height, width = image.shape[:2]
    left, top = (-side % MULTIPLE_PX // 2 for side in (width, height))
    with np.errstate(divide="ignore"):
        focal = float(np.float64(max(height, width) / 2) / np.tan(np.deg2rad(angle / 2)))
    camera = Camera((focal, focal), (width / 2 + left, height / 2 + top))
    padded, size = resized(rgb(image), resolution)
    pixels = bench.pixels((padded / 255.0 - np.array(MEAN)) / np.array(STD))
    normal = bench.net(Dsine, unwrapped)(pixels, camera, rounds)[0]
    made = bytes_of(((normal + 1) * 0.5).clip(0, 1).permute(1, 2, 0))
    return cut(made[top : top + height, left : left + width], size)
