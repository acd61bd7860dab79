"""The features of a face without its surroundings, as facexlib cuts them out: what PuLID looks at.

BiSeNet (Yu et al., arXiv 1808.00897; ``parsing_bisenet.pth``) says which of 19 parts each px is.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess import retinaface
from sd_cloud.engines.diffusion.preprocess.detect import resized, rgb
from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench, bytes_of
from sd_cloud.engines.diffusion.preprocess.onnx_network import Numbers
from sd_cloud.engines.diffusion.preprocess.retinaface import normed
from sd_cloud.errors import BadRequest

PARTS = 19
SEEN_PX, FACE_PX = 512, 512
# Where FFHQ's faces have eyes, nose and corners of the mouth, in px of 512 x 512.
ALIGNED = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
BORDER = (132, 133, 135)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
# Background, ears and their rings, neck and its chain, clothes, hat.
WHITE = (0, 7, 8, 9, 14, 15, 16, 18)
GREY = (0.299, 0.587, 0.114)


class Normed(nn.Module):
    def __init__(self, before: int, after: int, size: int = 3) -> None:
        super().__init__()
        self.conv, self.bn = normed(before, after, size)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = normed(before, after, 3, stride)
        self.conv2, self.bn2 = normed(after, after, 3)
        self.downsample: nn.Module = nn.Identity()
        if before != after or stride != 1:
            self.downsample = nn.Sequential(*normed(before, after, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        made = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(self.downsample(x) + made)


class ResNet(nn.Module):
    """Features at an eighth, a sixteenth and a thirty-second of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = normed(3, 64, 7, 2)
        for number, (before, after) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), start=1):
            stride = 1 if number == 1 else 2
            layer = nn.Sequential(Block(before, after, stride), Block(after, after, 1))
            self.add_module(f"layer{number}", layer)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(pixels))), 3, stride=2, padding=1)
        seen = []
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
            seen.append(x)
        return seen[1:]


class Refinement(nn.Module):
    """Features weighed by what the whole picture holds."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = Normed(before, after)
        self.conv_atten, self.bn_atten = normed(after, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.conv(x)
        mean = seen.mean((2, 3), keepdim=True)
        return torch.as_tensor(seen * self.bn_atten(self.conv_atten(mean)).sigmoid())


class ContextPath(nn.Module):
    """Features at an eighth of the size: the ResNet's own, and what the coarser ones add."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet()
        self.arm16, self.arm32 = Refinement(256, 128), Refinement(512, 128)
        self.conv_head32, self.conv_head16 = Normed(128, 128), Normed(128, 128)
        self.conv_avg = Normed(512, 128, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        eighth, sixteenth, coarse = self.resnet(pixels)
        whole = self.conv_avg(coarse.mean((2, 3), keepdim=True))
        made = functional.interpolate(self.arm32(coarse) + whole, sixteenth.shape[2:])
        made = self.arm16(sixteenth) + self.conv_head32(made)
        return eighth, self.conv_head16(functional.interpolate(made, eighth.shape[2:]))


class Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convblk = Normed(256, 256, 1)
        self.conv1, self.conv2 = nn.Conv2d(256, 64, 1, bias=False), nn.Conv2d(64, 256, 1, bias=False)

    def forward(self, own: Tensor, context: Tensor) -> Tensor:
        seen = self.convblk(torch.cat([own, context], dim=1))
        weight = functional.relu(self.conv1(seen.mean((2, 3), keepdim=True)))
        return torch.as_tensor(seen * self.conv2(weight).sigmoid() + seen)


class Head(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv, self.conv_out = Normed(before, width), nn.Conv2d(width, PARTS, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.conv_out(self.conv(x)))


class BiSeNet(nn.Module):
    """Logits [1, 19, H, W] from normalised RGB pixels. Two of the heads are for training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.cp, self.ffm = ContextPath(), Fusion()
        self.conv_out, self.conv_out16, self.conv_out32 = Head(256, 256), Head(128, 64), Head(128, 64)

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.conv_out(self.ffm(*self.cp(pixels)))
        return functional.interpolate(found, pixels.shape[2:], mode="bilinear", align_corners=True)


def features(bench: Bench, image: Pixels) -> Pixels:
    """What `feature_values` gives, in bytes."""
    return bytes_of(feature_values(bench, image))


def feature_values(bench: Bench, image: Pixels) -> Numbers:
    """512 x 512 px of 0..1, grey on white: the face nearest to the middle of an image of any size.

    Raises BadRequest where no face is seen.
    """
    detector, parser = bench.files
    seen, _ = resized(rgb(image), SEEN_PX)
    face = np.asarray(_aligned(seen, _middle(bench, seen, detector)))
    pixels = bench.pixels(
        (face.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    )
    parts = bench.net(BiSeNet, file=parser)(pixels)[0].argmax(dim=0).cpu().numpy()
    grey = sum(weight * (face[:, :, place].astype(np.float32) / 255) for place, weight in enumerate(GREY))
    made = np.where(np.isin(parts, WHITE), np.float32(1), grey)
    return np.repeat(made[:, :, None], 3, axis=2)


def _middle(bench: Bench, image: Pixels, detector: str) -> Numbers:
    """The points of the face nearest to the middle."""
    boxes, points = retinaface.faces(bench, image, file=detector)
    if not len(boxes):
        raise BadRequest("no face is seen in the image; send one with a face", field=bench.field)
    middle = np.array([image.shape[1] / 2, image.shape[0] / 2])
    away = np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - middle, axis=1)
    return np.asarray(points[away.argmin()])


def _aligned(image: Pixels, points: Numbers) -> Pixels:
    turn, _ = cv2.estimateAffinePartial2D(points, ALIGNED, method=cv2.LMEDS)
    return np.asarray(cv2.warpAffine(image, turn, (FACE_PX, FACE_PX), borderValue=BORDER), np.uint8)
