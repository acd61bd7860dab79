"""The second, larger pass of txt2img ("hires fix"): its size and its starting latent."""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn import functional

from sd_cloud.engines.base import Checkpoint
from sd_cloud.engines.diffusion import pictures
from sd_cloud.engines.diffusion.latents import to_unit
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.request import Hires, Request
from sd_cloud.errors import BadRequest

LATENT_PIXELS = 8
LATENT_UPSCALERS: dict[str, tuple[str, bool]] = {
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
"""Interpolation and antialiasing of each, by the webui's names."""


@dataclass(frozen=True)
class Target:
    """Size to enlarge to (pixels), and how much is cut off of it (in latent pixels)."""

    width: int
    height: int
    cut_x: int = 0
    cut_y: int = 0

    def crop(self, latent: Tensor) -> Tensor:
        height, width = latent.shape[2:]
        return latent[
            :,
            :,
            self.cut_y // 2 : height - (self.cut_y + 1) // 2,
            self.cut_x // 2 : width - (self.cut_x + 1) // 2,
        ]


@dataclass(frozen=True)
class HiresPlan:
    """``checkpoint`` is None where the pass goes on with the job's own."""

    hires: Hires
    target: Target
    checkpoint: Checkpoint | None = None


def target_size(request: Request, hires: Hires, marks: MutableMapping[str, Any]) -> Target:
    """From the scale, or from one or both sides (then the longer fit is cut). Raises BadRequest."""
    target = _target_size(request, hires, marks)
    kept = (target.width - target.cut_x * LATENT_PIXELS, target.height - target.cut_y * LATENT_PIXELS)
    if min(kept) < LATENT_PIXELS:
        size = f"{kept[0]}x{kept[1]}"
        raise BadRequest(
            f"the second pass would be {size} pixels; a side has at least {LATENT_PIXELS}",
            field="hr_resize_x, hr_resize_y",
        )
    return target


def _target_size(request: Request, hires: Hires, marks: MutableMapping[str, Any]) -> Target:
    width, height = request.width, request.height
    if not (hires.resize_x or hires.resize_y):
        marks["Hires upscale"] = hires.scale
        return Target(int(width * hires.scale), int(height * hires.scale))
    marks["Hires resize"] = f"{hires.resize_x}x{hires.resize_y}"
    by_width = Target(hires.resize_x, hires.resize_x * height // width)
    by_height = Target(hires.resize_y * width // height, hires.resize_y)
    if not hires.resize_y:
        return by_width
    if not hires.resize_x:
        return by_height
    chosen = by_width if width / height < hires.resize_x / hires.resize_y else by_height
    return Target(
        chosen.width,
        chosen.height,
        (chosen.width - hires.resize_x) // LATENT_PIXELS,
        (chosen.height - hires.resize_y) // LATENT_PIXELS,
    )


def old_first_size(request: Request) -> Request:
    """``use_old_hires_fix_width_height``: the size is the target's, the first pass has about 512² pixels."""
    assert request.hires is not None
    scale = math.sqrt(512 * 512 / (request.width * request.height))
    first = [math.ceil(scale * side / 64) * 64 for side in (request.width, request.height)]
    hires = replace(request.hires, resize_x=request.width, resize_y=request.height)
    return replace(request, width=first[0], height=first[1], hires=hires)


def upscaler_name(hires: Hires) -> str:
    return hires.upscaler or "Latent"


def is_latent(hires: Hires) -> bool:
    return upscaler_name(hires) in LATENT_UPSCALERS


def enlarge_latent(latent: Tensor, hires: Hires, target: Target) -> Tensor:
    mode, antialias = LATENT_UPSCALERS[upscaler_name(hires)]
    size = (target.height // LATENT_PIXELS, target.width // LATENT_PIXELS)
    return functional.interpolate(latent, size=size, mode=mode, antialias=antialias)


def enlarge_pictures(images: Sequence[Image.Image], target: Target, by: pictures.Resize) -> Tensor:
    """Pictures enlarged as pictures: [B, 3, H, W] in 0..1."""
    return to_unit([pictures.resize(0, image, target.width, target.height, by) for image in images])


def saves_first_pass(request: Request, options: Options) -> bool:
    return (
        request.save_images
        and options.flag("samples_save")
        and options.flag("save_images_before_highres_fix")
    )
