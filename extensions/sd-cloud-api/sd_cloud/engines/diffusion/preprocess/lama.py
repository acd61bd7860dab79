"""Filling a mask by LaMa: Suvorov et al., "Resolution-robust Large Mask Inpainting with Fourier
Convolutions" (arXiv 2109.07161), in the form of ``ControlNetLama.pth`` (big-lama's generator).

Its convolutions see a local and a global part of the channels; the global part passes through a
spectrum, as in Chi et al., "Fast Fourier Convolution" (NeurIPS 2020).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess.detect import cut, resized
from sd_cloud.engines.diffusion.preprocess.loading import Bench, bytes_of

WIDTH, HALVINGS, BLOCKS = 64, 3, 18
GLOBAL_SHARE = 0.75
RESOLUTION = 256  # px of the shorter side: what it was trained on
EDGE = 3


class Spectrum(nn.Module):
    """A convolution of 1 px over the Fourier transform, real and imaginary parts beside each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_layer = nn.Conv2d(2 * width, 2 * width, 1, bias=False)
        self.bn = nn.BatchNorm2d(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.fft.rfftn(x, dim=(-2, -1), norm="ortho")
        parts = torch.stack((found.real, found.imag), dim=2).flatten(1, 2)
        parts = functional.relu(self.bn(self.conv_layer(parts)))
        changed = torch.complex(parts[:, ::2].contiguous(), parts[:, 1::2].contiguous())
        return torch.as_tensor(torch.fft.irfftn(changed, s=x.shape[-2:], dim=(-2, -1), norm="ortho"))


class Global(nn.Module):
    """What the global channels make of themselves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = width // 2
        self.conv1 = nn.Sequential(nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU())
        self.fu = Spectrum(inner)
        self.conv2 = nn.Conv2d(inner, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return torch.as_tensor(self.conv2(x + self.fu(x)))


def mirrored(before: int, after: int, size: int, stride: int, padding: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride, padding, bias=False, padding_mode="reflect")


class Crossed(nn.Module):
    """Each part from both; ``before`` and ``after`` are (local, global) channels."""

    def __init__(
        self, before: tuple[int, int], after: tuple[int, int], size: int, stride: int, padding: int
    ) -> None:
        super().__init__()
        self.convl2l = mirrored(before[0], after[0], size, stride, padding)
        if after[1]:
            self.convl2g = mirrored(before[0], after[1], size, stride, padding)
        if before[1]:
            self.convg2l = mirrored(before[1], after[0], size, stride, padding)
            self.convg2g = Global(after[1])

    def forward(self, near: Tensor, far: Tensor | None) -> tuple[Tensor, Tensor | None]:
        local = self.convl2l(near)
        if far is not None:
            return local + self.convg2l(far), self.convl2g(near) + self.convg2g(far)
        return local, self.convl2g(near) if hasattr(self, "convl2g") else None


class Layer(nn.Module):
    def __init__(
        self, before: tuple[int, int], after: tuple[int, int], size: int, stride: int = 1, padding: int = 1
    ) -> None:
        super().__init__()
        self.ffc = Crossed(before, after, size, stride, padding)
        self.bn_l = nn.BatchNorm2d(after[0])
        if after[1]:
            self.bn_g = nn.BatchNorm2d(after[1])

    def forward(self, near: Tensor, far: Tensor | None) -> tuple[Tensor, Tensor | None]:
        local, wide = self.ffc(near, far)
        return functional.relu(self.bn_l(local)), None if wide is None else functional.relu(self.bn_g(wide))


class Block(nn.Module):
    def __init__(self, width: tuple[int, int]) -> None:
        super().__init__()
        self.conv1, self.conv2 = Layer(width, width, 3), Layer(width, width, 3)

    def forward(self, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        local, wide = self.conv2(*self.conv1(near, far))
        return near + local, far + wide


class Lama(nn.Module):
    """Pixels [1, 3, H, W] in 0..1 from pixels that are 0 under the mask, and the mask (0 or 1)."""

    def __init__(self) -> None:
        super().__init__()
        widths = [WIDTH * 2**level for level in range(HALVINGS + 1)]
        far = int(widths[-1] * GLOBAL_SHARE)
        split = (widths[-1] - far, far)
        places: dict[str, nn.Module] = {"1": Layer((4, 0), (WIDTH, 0), 2 * EDGE + 1, padding=0)}

        def put(module: nn.Module, skipped: int = 0) -> None:
            places[str(int(list(places)[-1]) + 1 + skipped)] = module

        for level in range(HALVINGS):
            after = split if level == HALVINGS - 1 else (widths[level + 1], 0)
            put(Layer((widths[level], 0), after, 3, stride=2))
        for _ in range(BLOCKS):
            put(Block(split))
        # The published sequence also counts what has no weights: joining, activations, padding.
        for level in reversed(range(HALVINGS)):
            up = nn.ConvTranspose2d(widths[level + 1], widths[level], 3, 2, padding=1, output_padding=1)
            put(up, skipped=1)
            put(nn.BatchNorm2d(widths[level]))
        put(nn.Conv2d(WIDTH, 3, 2 * EDGE + 1), skipped=2)
        self.model = nn.ModuleDict(places)

    def forward(self, masked: Tensor) -> Tensor:
        layers = list(self.model.values())
        near, far = functional.pad(masked, (EDGE,) * 4, mode="reflect"), None
        for layer in layers[: 1 + HALVINGS + BLOCKS]:
            near, far = layer(near, far)
        assert far is not None
        x = torch.cat((near, far), dim=1)
        *ups, last = layers[1 + HALVINGS + BLOCKS :]
        for up, norm in zip(ups[::2], ups[1::2], strict=True):
            x = functional.relu(norm(up(x)))
        return torch.as_tensor(last(functional.pad(x, (EDGE,) * 4, mode="reflect")).sigmoid())


def filled(bench: Bench, image: NDArray[Any]) -> NDArray[Any]:
    """A picture with its mask [H, W, 4], painted under the mask at 256 px and laid into the picture."""
    height, width = image.shape[:2]
    small, size = resized(image, RESOLUTION)
    pixels = bench.pixels(small) / 255.0
    mask = (pixels[:, 3:] > 0.5).float()
    known = pixels[:, :3] * (1 - mask)
    made = bench.net(Lama)(torch.cat([known, mask], dim=1))
    painted = bytes_of((made * mask + known * (1 - mask))[0].permute(1, 2, 0))
    painted = np.asarray(cv2.resize(cut(painted, size), (width, height)), np.float32)
    share = image[:, :, 3:].astype(np.float32) / 255.0
    laid = (painted * share + image[:, :, :3].astype(np.float32) * (1 - share)).clip(0, 255).astype(np.uint8)
    return np.concatenate([laid, image[:, :, 3:]], axis=2)
