"""RetinaFace: Deng et al., "RetinaFace: Single-shot Multi-level Face Localisation" (arXiv 1905.00641), in
the form of facexlib's ``detection_Resnet50_Final.pth``.

A ResNet-50 (He et al., arXiv 1512.03385), a pyramid of three levels, and at each place of each level two
boxes with five points.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench, Part, unwrapped
from sd_cloud.engines.diffusion.preprocess.onnx_network import Numbers, apart

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # planes, layers, stride
EXPANSION, WIDTH = 4, 256
STRIDES_PX, SIDES_PX = (8, 16, 32), ((16, 32), (64, 128), (256, 512))
MEAN = (104.0, 117.0, 123.0)  # blue, green, red
MOVE, GROW = 0.1, 0.2  # the unit of what the heads say
LEAST_SURE, OVERLAP = 0.97, 0.4


def normed(before: int, after: int, size: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)
    return [conv, nn.BatchNorm2d(after)]


class Bottleneck(nn.Module):
    def __init__(self, before: int, planes: int, stride: int) -> None:
        super().__init__()
        after = planes * EXPANSION
        self.conv1, self.bn1 = normed(before, planes, 1)
        self.conv2, self.bn2 = normed(planes, planes, 3, stride)
        self.conv3, self.bn3 = normed(planes, after, 1)
        self.downsample: nn.Module = nn.Identity()
        if before != after:
            self.downsample = nn.Sequential(*normed(before, after, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        made = functional.relu(self.bn1(self.conv1(x)))
        made = functional.relu(self.bn2(self.conv2(made)))
        return functional.relu(self.bn3(self.conv3(made)) + self.downsample(x))


class ResNet(nn.Module):
    """Features at an eighth, a sixteenth and a thirty-second of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = normed(3, 64, 7, 2)
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
        return seen[1:]


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for number, (planes, _, _) in enumerate(STAGES[1:], start=1):
            own = nn.Sequential(*normed(planes * EXPANSION, WIDTH, 1), nn.ReLU())
            self.add_module(f"output{number}", own)
        self.merge1, self.merge2 = (nn.Sequential(*normed(WIDTH, WIDTH, 3), nn.ReLU()) for _ in range(2))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        fine, middle, coarse = (
            self.get_submodule(f"output{number}")(x) for number, x in enumerate(features, start=1)
        )
        middle = self.merge2(middle + functional.interpolate(coarse, middle.shape[2:]))
        fine = self.merge1(fine + functional.interpolate(middle, fine.shape[2:]))
        return [fine, middle, coarse]


class Context(nn.Module):
    """What is around a place, 3, 5 and 7 px wide (Najibi et al., "SSH", arXiv 1708.03979)."""

    def __init__(self) -> None:
        super().__init__()
        half, quarter = WIDTH // 2, WIDTH // 4
        self.conv3X3 = nn.Sequential(*normed(WIDTH, half, 3))
        self.conv5X5_1 = nn.Sequential(*normed(WIDTH, quarter, 3), nn.ReLU())
        self.conv5X5_2 = nn.Sequential(*normed(quarter, quarter, 3))
        self.conv7X7_2 = nn.Sequential(*normed(quarter, quarter, 3), nn.ReLU())
        self.conv7x7_3 = nn.Sequential(*normed(quarter, quarter, 3))

    def forward(self, x: Tensor) -> Tensor:
        wider = self.conv5X5_1(x)
        parts = [self.conv3X3(x), self.conv5X5_2(wider), self.conv7x7_3(self.conv7X7_2(wider))]
        return functional.relu(torch.cat(parts, dim=1))


def heads(values: int) -> nn.ModuleList:
    """One a level: so many values for each of its two boxes."""
    made = nn.ModuleList(Part() for _ in SIDES_PX)
    for head in made:
        head.conv1x1 = nn.Conv2d(WIDTH, 2 * values, 1)
    return made


class RetinaFace(nn.Module):
    """Boxes [N, 4], how sure [N], points [N, 10], as the heads say them, from BGR pixels less the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fpn = ResNet(), Pyramid()
        self.ssh1, self.ssh2, self.ssh3 = Context(), Context(), Context()
        self.BboxHead, self.ClassHead, self.LandmarkHead = heads(4), heads(2), heads(10)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = self.fpn(self.body(pixels))
        seen = [net(x) for net, x in zip((self.ssh1, self.ssh2, self.ssh3), seen, strict=True)]

        def said(parts: nn.ModuleList, values: int) -> Tensor:
            made = [head.get_submodule("conv1x1")(x) for head, x in zip(parts, seen, strict=True)]
            return torch.cat([one[0].permute(1, 2, 0).reshape(-1, values) for one in made])

        sure = said(self.ClassHead, 2).softmax(dim=-1)[:, 1]
        return said(self.BboxHead, 4), sure, said(self.LandmarkHead, 10)


def faces(bench: Bench, image: Pixels, *, file: str) -> tuple[Numbers, Numbers]:
    """Boxes [N, 4] (left, top, right, bottom) and points [N, 5, 2] in px of an RGB image whose sides are
    multiples of 32 px, surest first."""
    pixels = bench.pixels(image[:, :, ::-1].astype(np.float32) - np.array(MEAN, np.float32))
    moved, sure, ways = bench.net(RetinaFace, unwrapped, file=file)(pixels)
    size = (image.shape[0], image.shape[1])
    priors = _priors(size).to(moved)
    places, extents = priors[:, :2], priors[:, 2:]
    sides = extents * torch.exp(moved[:, 2:] * GROW)
    start = places + moved[:, :2] * MOVE * extents - sides / 2
    boxes = torch.cat([start, start + sides], dim=1)
    points = places[:, None] + ways.view(-1, 5, 2) * MOVE * extents[:, None]
    scale = torch.tensor([size[1], size[0]], dtype=moved.dtype, device=moved.device)
    in_px = (boxes * scale.repeat(2)).cpu().numpy(), (points * scale).cpu().numpy(), sure.cpu().numpy()
    seen = np.where(in_px[2] > LEAST_SURE)[0]
    order = seen[in_px[2][seen].argsort()[::-1]]
    kept = order[apart(in_px[0][order], in_px[2][order], OVERLAP, edge_px=0)]
    return in_px[0][kept], in_px[1][kept]


def _priors(size: tuple[int, int]) -> Tensor:
    """[N, 4]: where each box would lie if the heads said nothing: its centre and extent, as shares."""
    made = []
    for stride, sides in zip(STRIDES_PX, SIDES_PX, strict=True):
        down, across = np.mgrid[: -(-size[0] // stride), : -(-size[1] // stride)] + 0.5
        for_each = [
            np.stack(
                [
                    across * stride / size[1],
                    down * stride / size[0],
                    np.full_like(across, side / size[1]),
                    np.full_like(across, side / size[0]),
                ],
                axis=2,
            )
            for side in sides
        ]
        made.append(np.stack(for_each, axis=2).reshape(-1, 4))
    return torch.from_numpy(np.concatenate(made).astype(np.float32))
