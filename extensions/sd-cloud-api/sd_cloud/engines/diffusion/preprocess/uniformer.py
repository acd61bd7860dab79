"""Segments in ADE20K's colours by UniFormer: Li et al., "UniFormer: Unifying Convolution and Self-attention
for Visual Recognition" (arXiv 2201.09450), in the form of ``upernet_global_small.pth``.

Above it UPerNet's decoder: Xiao et al., "Unified Perceptual Parsing for Scene Understanding"
(arXiv 1807.10221), with PSPNet's pyramid of means (arXiv 1612.01105).
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench
from sd_cloud.engines.diffusion.preprocess.palettes import ADE20K, coloured

WIDTHS, LAYERS = (64, 128, 320, 512), (3, 4, 8, 3)
CONVOLVING = 2  # as many stages look at their surroundings only, the others at everything
HEAD_WIDTH = 64
DECODER_WIDTH = 512
POOLS = (1, 2, 3, 6)
NORM_EPS = 1e-6
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, of RGB
LONGEST, SHORTEST = 2048, 512  # px that the sides are brought to
UNUSED = "auxiliary_head."  # what training needs


class Mlp(nn.Module):
    def __init__(self, width: int, *, convolving: bool) -> None:
        super().__init__()
        inner = 4 * width
        self.fc1 = nn.Conv2d(width, inner, 1) if convolving else nn.Linear(width, inner)
        self.fc2 = nn.Conv2d(inner, width, 1) if convolving else nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.fc2(functional.gelu(self.fc1(x))))


class Near(nn.Module):
    """A block that looks at 5 x 5 places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.mlp = Mlp(width, convolving=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self.conv2(self.attn(self.conv1(self.norm1(x))))
        return torch.as_tensor(x + self.mlp(self.norm2(x)))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, places, width = x.shape
        split = self.qkv(x).reshape(batch, places, 3, self.heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        shares = (query @ key.transpose(-2, -1) * HEAD_WIDTH**-0.5).softmax(dim=-1)
        return torch.as_tensor(self.proj((shares @ value).transpose(1, 2).reshape(batch, places, width)))


class Far(nn.Module):
    """A block that looks at all places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = nn.LayerNorm(width, NORM_EPS), nn.LayerNorm(width, NORM_EPS)
        self.attn, self.mlp = Attention(width), Mlp(width, convolving=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        size = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x.transpose(1, 2).reshape(size)


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    """A norm over the channels of [N, C, H, W]."""
    return torch.as_tensor(norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous())


class Patches(nn.Module):
    def __init__(self, before: int, after: int, side: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(before, after, side, stride=side), nn.LayerNorm(after)

    def forward(self, x: Tensor) -> Tensor:
        return normed(self.proj(x), self.norm)


class Backbone(nn.Module):
    """Features at a quarter, an eighth, a sixteenth and a thirty-second of the size."""

    def __init__(self) -> None:
        super().__init__()
        for stage, (width, count) in enumerate(zip(WIDTHS, LAYERS, strict=True)):
            before, side = (WIDTHS[stage - 1], 2) if stage else (3, 4)
            kind = Near if stage < CONVOLVING else Far
            self.add_module(f"patch_embed{stage + 1}", Patches(before, width, side))
            self.add_module(f"blocks{stage + 1}", nn.Sequential(*(kind(width) for _ in range(count))))
            self.add_module(f"norm{stage + 1}", nn.LayerNorm(width, NORM_EPS))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = []
        for stage in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"blocks{stage}")(self.get_submodule(f"patch_embed{stage}")(x))
            levels.append(normed(x, self.get_submodule(f"norm{stage}")))
        return levels


class Conv(nn.Module):
    def __init__(self, before: int, after: int, side: int) -> None:
        super().__init__()
        self.conv, self.bn = (
            nn.Conv2d(before, after, side, padding=side // 2, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def enlarged(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(x, size, mode="bilinear", align_corners=False)


class Decoder(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        width, last = DECODER_WIDTH, WIDTHS[-1]
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), Conv(last, width, 1)) for side in POOLS
        )
        self.bottleneck = Conv(last + len(POOLS) * width, width, 3)
        self.lateral_convs = nn.ModuleList(Conv(before, width, 1) for before in WIDTHS[:-1])
        self.fpn_convs = nn.ModuleList(Conv(width, width, 3) for _ in WIDTHS[:-1])
        self.fpn_bottleneck = Conv(len(WIDTHS) * width, width, 3)
        self.conv_seg = nn.Conv2d(width, classes, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        last = levels[-1]
        means = [enlarged(pool(last), last.shape[2:]) for pool in self.psp_modules]
        seen = [self.bottleneck(torch.cat([last, *means], dim=1))]
        for level, lateral in reversed(list(zip(levels[:-1], self.lateral_convs, strict=True))):
            seen.insert(0, lateral(level) + enlarged(seen[0], level.shape[2:]))
        made = [conv(one) for conv, one in zip(self.fpn_convs, seen[:-1], strict=True)] + seen[-1:]
        made = [made[0], *(enlarged(one, made[0].shape[2:]) for one in made[1:])]
        return torch.as_tensor(self.conv_seg(self.fpn_bottleneck(torch.cat(made, dim=1))))


class UniFormer(nn.Module):
    """How likely each class is, as logits [1, 150, H/4, W/4]."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.decode_head = Backbone(), Decoder(len(ADE20K))

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.as_tensor(self.decode_head(self.backbone(pixels)))


def for_inference(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(UNUSED)}


def segments(bench: Bench, image: Pixels) -> Pixels:
    height, width = image.shape[:2]
    factor = min(LONGEST / max(height, width), SHORTEST / min(height, width))
    size = int(width * factor + 0.5), int(height * factor + 0.5)
    seen = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR).astype(np.float32)
    # The extension turns RGB to BGR here, and takes RGB's means off it.
    pixels = (seen[:, :, ::-1] - np.array(MEAN, np.float32)) * (1 / np.array(STD)).astype(np.float32)
    logits = bench.net(UniFormer, for_inference)(bench.pixels(pixels))
    logits = enlarged(enlarged(logits, (size[1], size[0])), (height, width))
    return coloured(logits.softmax(dim=1)[0].argmax(dim=0), ADE20K)
