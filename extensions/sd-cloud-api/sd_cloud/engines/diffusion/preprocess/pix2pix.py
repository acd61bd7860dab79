"""The U-Net of pix2pix: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks"
(arXiv 1611.07004), in the published files' layout: each level lies within the one around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.2


class Level(nn.Module):
    """One level around the next: halves the size, and joins what comes back.

    ``normed``: each plane is normalised, and its convolutions have biases; else neither.
    """

    def __init__(self, outer: int, inner: int, within: Level | None, *, normed: bool = True) -> None:
        super().__init__()
        norm = nn.InstanceNorm2d if normed else nn.Identity
        down = nn.Conv2d(outer, inner, 4, stride=2, padding=1, bias=normed)
        seen = inner if within is None else 2 * inner
        up = nn.ConvTranspose2d(seen, outer, 4, stride=2, padding=1, bias=normed)
        layers: list[nn.Module] = [nn.LeakyReLU(SLOPE), down]
        if within is not None:
            layers += [norm(inner), within]
        self.model = nn.Sequential(*layers, nn.ReLU(), up, norm(outer))

    def forward(self, x: Tensor) -> Tensor:
        # The first layer changes its input in place in the original, so what is joined has it, too.
        return torch.cat([functional.leaky_relu(x, SLOPE), self.model(x)], dim=1)


class Outermost(nn.Module):
    """From ``before`` planes to ``after`` in -1..1, by the levels ``within``."""

    def __init__(self, before: int, after: int, width: int, within: Level, *, normed: bool = True) -> None:
        super().__init__()
        down = nn.Conv2d(before, width, 4, stride=2, padding=1, bias=normed)
        up = nn.ConvTranspose2d(2 * width, after, 4, stride=2, padding=1)
        self.model = nn.Sequential(down, within, nn.ReLU(), up, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.model(x))


class UNet(nn.Module):
    """Planes in -1..1 from planes in -1..1, sides multiples of 2 ** ``halvings`` px."""

    def __init__(
        self, before: int, after: int, halvings: int, *, width: int = 64, normed: bool = True
    ) -> None:
        super().__init__()
        widths = [width * min(2**place, 8) for place in range(halvings)]
        level = Level(widths[-2], widths[-1], None, normed=normed)
        for place in range(halvings - 2, 0, -1):
            level = Level(widths[place - 1], widths[place], level, normed=normed)
        self.model = Outermost(before, after, width, level, normed=normed)

    def forward(self, planes: Tensor) -> Tensor:
        return torch.as_tensor(self.model(planes))
