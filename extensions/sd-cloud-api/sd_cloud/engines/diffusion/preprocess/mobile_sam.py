"""Everything in a picture, in a colour each: MobileSAM (Zhang et al., arXiv 2306.14289), ``mobile_sam.pt``.

Segment Anything (Kirillov et al., arXiv 2304.02643) with a small network in place of its large one. It is
asked what lies at each point of a grid; what it is sure of, and what is not found twice, is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import SamConfig
from transformers.models.sam.modeling_sam import SamMaskDecoder, SamPromptEncoder

from sd_cloud.engines.diffusion.preprocess.detect import PAD_PX, rgb
from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench
from sd_cloud.engines.diffusion.preprocess.tiny_vit import STEP_PX, TinyViT

SIDE_PX = 1024  # of the square that the network sees
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, of RGB
DECODER_WIDTH, NORM_EPS = 2048, 1e-5
POINTS = 32  # each way
POINTS_AT_ONCE = 64
LEAST_SURE, LEAST_STEADY, OVERLAP = 0.88, 0.95, 0.7
STEADY_OFFSET = 1.0  # what is added to the logits, and taken off, to see whether a mask stays what it is

UNUSED = ("image_encoder.norm_head.", "image_encoder.head.")  # the classifier that TinyViT began as
NAMES = {
    r"pe_layer\.positional_encoding_gaussian_matrix": "shared_embedding.positional_embedding",
    r"\.point_embeddings\.": ".point_embed.",
    r"\.mask_downscaling\.0\.": ".mask_embed.conv1.",
    r"\.mask_downscaling\.1\.": ".mask_embed.layer_norm1.",
    r"\.mask_downscaling\.3\.": ".mask_embed.conv2.",
    r"\.mask_downscaling\.4\.": ".mask_embed.layer_norm2.",
    r"\.mask_downscaling\.6\.": ".mask_embed.conv3.",
    r"\.norm(\d|_final_attn)\.": r".layer_norm\1.",
    r"\.output_upscaling\.0\.": ".upscale_conv1.",
    r"\.output_upscaling\.1\.": ".upscale_layer_norm.",
    r"\.output_upscaling\.3\.": ".upscale_conv2.",
    r"(_mlps\.\d+|_head)\.layers\.0\.": r"\1.proj_in.",
    r"(_mlps\.\d+|_head)\.layers\.1\.": r"\1.layers.0.",
    r"(_mlps\.\d+|_head)\.layers\.2\.": r"\1.proj_out.",
}
"""The file's names and transformers', outside of the image encoder."""


class MobileSam(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = {"image_size": SIDE_PX, "patch_size": STEP_PX}
        config = SamConfig(
            vision_config=dict(sizes),
            prompt_encoder_config=dict(sizes),
            mask_decoder_config={"mlp_dim": DECODER_WIDTH, "layer_norm_eps": NORM_EPS},
        )
        config.mask_decoder_config._attn_implementation = "eager"
        self.image_encoder = TinyViT()
        self.prompt_encoder = SamPromptEncoder(config)
        self.mask_decoder = SamMaskDecoder(config.mask_decoder_config)

    def masks(self, seen: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Three masks for each point (x, y px of the square) as logits [3N, side / 4, side / 4], and how sure
        the network is of each."""
        labels = torch.ones(1, len(points), 1, dtype=torch.int, device=points.device)
        asked, nothing_known = self.prompt_encoder(points[None, :, None], labels, None, None)
        found, sure = self.mask_decoder(seen, self._places(seen), asked, nothing_known, multimask_output=True)
        return found[0].flatten(0, 1), sure[0].flatten()

    def _places(self, seen: Tensor) -> Tensor:
        """[1, 256, H, W]: where each place of what is seen lies."""
        down, across = ((torch.arange(side, device=seen.device) + 0.5) / side for side in seen.shape[2:])
        grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)
        return torch.as_tensor(self.prompt_encoder.shared_embedding(grid).permute(2, 0, 1)[None])


def renamed(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {_renamed(key): value for key, value in state.items() if not key.startswith(UNUSED)}


def _renamed(key: str) -> str:
    if key.startswith("image_encoder."):
        return key
    for name, ours in NAMES.items():
        key = re.sub(name, ours, key)
    return key


@dataclass(frozen=True)
class Segment:
    """``box``: left, top, right, bottom px, the last ones within it."""

    sure: float
    box: tuple[int, int, int, int]
    area: int
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, mask: NDArray[np.bool_], sure: float) -> Segment:
        down, across = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = int(across[0]), int(down[0]), int(across[-1]), int(down[-1])
        return cls(sure, box, int(mask.sum()), np.packbits(mask))

    def mask(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        bits = np.unpackbits(self.bits, count=size[0] * size[1])
        return bits.reshape(size).astype(bool)


def segments(bench: Bench, image: Pixels, resolution: float, seed: int | None) -> Pixels:
    """In random colours that ``seed`` decides; black where nothing is found.

    As in controlnet_aux, sides are multiples of 64 px, and are brought to ``resolution`` twice, the segments
    once the network has found them.
    """
    net = bench.net(MobileSam, renamed)
    pixels = rgb(image)
    size = _rounded(pixels.shape[:2], resolution)
    how = cv2.INTER_LANCZOS4 if resolution > min(pixels.shape[:2]) else cv2.INTER_AREA
    scaled = np.asarray(cv2.resize(pixels, (size[1], size[0]), interpolation=how), np.uint8)
    made = drawn(apart(list(_found(bench, net, scaled))), size, np.random.RandomState(seed))
    last = _rounded(size, resolution)
    return np.asarray(cv2.resize(made, (last[1], last[0]), interpolation=cv2.INTER_LINEAR), np.uint8)


def _rounded(size: tuple[int, ...], resolution: float) -> tuple[int, int]:
    factor = float(resolution) / min(size)
    height, width = (max(int(np.round(side * factor / PAD_PX)), 1) * PAD_PX for side in size[:2])
    return height, width


def _found(bench: Bench, net: MobileSam, image: Pixels) -> Iterator[Segment]:
    """All that the network is sure of, also what it finds from several points."""
    size = image.shape[:2]
    height, width = (int(side * (SIDE_PX / max(size)) + 0.5) for side in size)
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    normal = (resized.astype(np.float32) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    seen = net.image_encoder(functional.pad(bench.pixels(normal), (0, SIDE_PX - width, 0, SIDE_PX - height)))
    across, down = ((np.arange(POINTS) + 0.5) / POINTS * side for side in (width, height))
    points = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
    for asked in torch.split(torch.from_numpy(points).to(seen.device), POINTS_AT_ONCE):
        logits, sureness = net.masks(seen, asked)
        for place in torch.nonzero(sureness > LEAST_SURE).flatten().tolist():
            full = _enlarged(logits[None, place, None], (SIDE_PX, SIDE_PX))[:, :, :height, :width]
            mask = _steady(_enlarged(full, size)[0, 0])
            if mask is not None:
                yield Segment.of(mask.cpu().numpy(), float(sureness[place]))


def _enlarged(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(x, size, mode="bilinear", align_corners=False)


def _steady(logits: Tensor) -> Tensor | None:
    """The mask, if it hardly depends on where it is cut off."""
    inner, outer = (int((logits > cut).sum()) for cut in (STEADY_OFFSET, -STEADY_OFFSET))
    return logits > 0 if outer and inner / outer >= LEAST_STEADY else None


def apart(found: list[Segment]) -> list[Segment]:
    """The surest ones, whose boxes share no more than ``OVERLAP`` of what they and a surer one's cover."""
    found = sorted(found, key=lambda one: one.sure, reverse=True)
    boxes = np.array([one.box for one in found], np.float32).reshape(-1, 4)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    left, kept = np.arange(len(found)), []
    while left.size:
        best, rest = left[0], left[1:]
        kept.append(found[best])
        low, high = np.maximum(boxes[best, :2], boxes[rest, :2]), np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        left = rest[shared <= OVERLAP * (areas[best] + areas[rest] - shared)]
    return kept


def drawn(found: list[Segment], size: tuple[int, int], random: np.random.RandomState) -> Pixels:
    """The smaller ones upon the larger."""
    made = np.zeros((*size, 3), np.uint8)
    for one in sorted(found, key=lambda one: one.area, reverse=True):
        made[one.mask(size)] = [random.randint(255, dtype=np.uint8) for _ in range(3)]
    return made
