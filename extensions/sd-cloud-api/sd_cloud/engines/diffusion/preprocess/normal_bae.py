"""Surface normals: Bae et al., "Estimating and Exploiting the Aleatoric Uncertainty in Surface Normal
Estimation" (arXiv 2109.09881), in the form of ``scannet.pt``.

An EfficientNet-B5 (Tan & Le, arXiv 1905.11946; TensorFlow's padding) and a decoder that refines normals
from an eighth of the size to the whole.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench, Part, bytes_of, unwrapped
from sd_cloud.engines.diffusion.preprocess.midas import padded_same

STEM, LAST = 48, 2048
# Stages of EfficientNet-B5: width, layers, kernel, stride. The first has no expansion, the others sixfold.
STAGES = (
    (24, 3, 3, 1),
    (40, 5, 3, 2),
    (64, 5, 5, 2),
    (128, 7, 3, 2),
    (176, 7, 5, 1),
    (304, 9, 5, 2),
    (512, 3, 3, 1),
)
EXPANSION, SQUEEZE = 6, 4
BATCH_EPS = 1e-3
LEAST_KAPPA = 0.01
SEEN_STAGES = (0, 1, 2, 4)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class SameConv(nn.Conv2d):
    """A convolution without a bias, padded as TensorFlow pads."""

    def __init__(self, before: int, after: int, size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, after, size, stride=stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(padded_same(x, self.kernel_size[0], self.stride[0]))


def batch_norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=BATCH_EPS)


class Squeeze(nn.Module):
    def __init__(self, width: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce, self.conv_expand = nn.Conv2d(width, reduced, 1), nn.Conv2d(reduced, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        share = functional.silu(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return torch.as_tensor(x * self.conv_expand(share).sigmoid())


class Separable(nn.Module):
    def __init__(self, before: int, after: int, size: int, stride: int) -> None:
        super().__init__()
        self.conv_dw, self.bn1 = SameConv(before, before, size, stride, groups=before), batch_norm(before)
        self.se = Squeeze(before, before // SQUEEZE)
        self.conv_pw, self.bn2 = SameConv(before, after, 1), batch_norm(after)
        self.adds = before == after and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        made = self.se(functional.silu(self.bn1(self.conv_dw(x))))
        made = self.bn2(self.conv_pw(made))
        return torch.as_tensor(made + x if self.adds else made)


class Inverted(nn.Module):
    def __init__(self, before: int, after: int, size: int, stride: int) -> None:
        super().__init__()
        inner = EXPANSION * before
        self.conv_pw, self.bn1 = SameConv(before, inner, 1), batch_norm(inner)
        self.conv_dw, self.bn2 = SameConv(inner, inner, size, stride, groups=inner), batch_norm(inner)
        self.se = Squeeze(inner, before // SQUEEZE)
        self.conv_pwl, self.bn3 = SameConv(inner, after, 1), batch_norm(after)
        self.adds = before == after and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        made = functional.silu(self.bn1(self.conv_pw(x)))
        made = self.se(functional.silu(self.bn2(self.conv_dw(made))))
        made = self.bn3(self.conv_pwl(made))
        return torch.as_tensor(made + x if self.adds else made)


class EfficientNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = SameConv(3, STEM, 3, 2), batch_norm(STEM)
        stages = []
        before = STEM
        for number, (width, layers, size, stride) in enumerate(STAGES):
            kind = Separable if number == 0 else Inverted
            first = kind(before, width, size, stride)
            stages.append(nn.Sequential(first, *(kind(width, width, size, 1) for _ in range(layers - 1))))
            before = width
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = SameConv(before, LAST, 1), batch_norm(LAST)  # the norm is not used here

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """At a half, a quarter, an eighth and a sixteenth of the size, and the last features."""
        x = functional.silu(self.bn1(self.conv_stem(pixels)))
        seen = []
        for number, stage in enumerate(self.blocks):
            x = stage(x)
            if number in SEEN_STAGES:
                seen.append(x)
        return [*seen, self.conv_head(x)]


class Up(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (before, after):
            layers += [nn.Conv2d(width, after, 3, padding=1), nn.BatchNorm2d(after), nn.LeakyReLU()]
        self._net = nn.Sequential(*layers)

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        x = functional.interpolate(x, finer.shape[2:], mode="bilinear", align_corners=True)
        return torch.as_tensor(self._net(torch.cat([x, finer], dim=1)))


def refining(width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (width + 4, 128, 128):
        layers += [nn.Conv1d(before, 128, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv1d(128, 4, 1))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(LAST, LAST, 1)
        self.up1, self.up2 = Up(LAST + 176, 1024), Up(1024 + 64, 512)
        self.up3, self.up4 = Up(512 + 40, 256), Up(256 + 24, 128)
        self.out_conv_res8 = nn.Conv2d(512, 4, 3, padding=1)
        self.out_conv_res4, self.out_conv_res2, self.out_conv_res1 = map(refining, (512, 256, 128))

    def forward(self, features: list[Tensor]) -> Tensor:
        half, quarter, eighth, sixteenth, last = features
        at_eighth = self.up2(self.up1(self.conv2(last), sixteenth), eighth)
        at_quarter = self.up3(at_eighth, quarter)
        at_half = self.up4(at_quarter, half)
        normal = unit(self.out_conv_res8(at_eighth))
        for seen, refine in (
            (at_eighth, self.out_conv_res4),
            (at_quarter, self.out_conv_res2),
            (at_half, self.out_conv_res1),
        ):
            both = torch.cat([twice(seen), twice(normal)], dim=1)
            normal = unit(refine(both.flatten(2))).view(both.shape[0], 4, *both.shape[2:])
        return normal


def twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def unit(found: Tensor) -> Tensor:
    """Normals of length 1, and how sure each is."""
    normal, kappa = found[:, :3], found[:, 3:]
    length = (normal**2.0).sum(dim=1, keepdim=True).sqrt() + 1e-10
    return torch.cat([normal / length, functional.elu(kappa) + 1.0 + LEAST_KAPPA], dim=1)


class NormalBae(nn.Module):
    """Normals and their certainty [1, 4, H, W] from normalised RGB pixels, sides multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Part()
        self.encoder.original_model = EfficientNet()
        self.decoder = Decoder()

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.as_tensor(self.decoder(self.encoder.original_model(pixels)))


def normals(bench: Bench, image: Pixels) -> Pixels:
    pixels = bench.pixels((image / 255.0 - np.array(MEAN)) / np.array(STD))
    normal = bench.net(NormalBae, unwrapped)(pixels)[0, :3]
    return bytes_of(((normal + 1) * 0.5).clip(0, 1).permute(1, 2, 0))
