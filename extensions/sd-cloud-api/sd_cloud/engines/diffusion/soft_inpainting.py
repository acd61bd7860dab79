"""Soft inpainting: grey parts of a mask keep part of the old picture, at each step and in the end.

Formulas, names and defaults: ``extensions-builtin/soft-inpainting`` of webui 1.10.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from sd_cloud.engines.diffusion import pictures
from sd_cloud.engines.diffusion.guidance import Mask
from sd_cloud.engines.diffusion.img2img import Prepared
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.request import Request, Source
from sd_cloud.engines.diffusion.scripts.forms import SOFT_INPAINTING
from sd_cloud.errors import BadRequest

SCRIPT = "soft inpainting"
FIELD = f"alwayson_scripts.{SCRIPT}.args"
NUMBERS = SOFT_INPAINTING[1:]
LABELS = tuple(one.label.lower() for one in NUMBERS)
EDGE_BLUR_PX = 4

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SoftInpainting:
    """The script's numbers, in the order of its arguments after ``enabled``."""

    schedule_bias: float = 1
    preservation: float = 0.5
    contrast_boost: float = 4
    mask_influence: float = 0
    threshold: float = 0.5
    contrast: float = 2

    def marks(self) -> dict[str, Any]:
        told = {f"Soft inpainting {name}": value for name, value in zip(LABELS, astuple(self), strict=True)}
        return {"Soft inpainting enabled": True, **told}


def soft_inpainting_of(payload: Mapping[str, Any]) -> SoftInpainting | None:
    """What a request asks for; None where it does not, or has no mask. Raises BadRequest."""
    scripts = payload.get("alwayson_scripts") or {}
    own = next((value for key, value in scripts.items() if key.lower() == SCRIPT), None)
    args = own.get("args") if isinstance(own, Mapping) else None
    if not args or not payload.get("mask"):
        return None
    if not isinstance(args, list) or len(args) > 1 + len(LABELS):
        raise BadRequest(f"expected a list of enabled, {', '.join(LABELS)}", field=FIELD)
    if not args[0]:
        return None
    for place, (name, value, one) in enumerate(zip(LABELS, args[1:], NUMBERS, strict=False), 1):
        low, high = one.low or 0, one.high or 0
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise BadRequest(
                f"{name}: {value!r:.80} is no number from {low} to {high}", field=f"{FIELD}[{place}]"
            )
    return SoftInpainting(*args[1:])


def unrounded(request: Request) -> Request:
    """The request with its mask's greys kept."""
    assert request.source is not None
    return replace(request, source=replace(request.source, mask_round=False))


@dataclass(frozen=True)
class SoftMask(Mask):
    """Blends less of the old latent the less noise there is, and nothing of it in the end."""

    soft: SoftInpainting = SoftInpainting()

    def blend(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        """``level``: the sigma, or the timestep, of the call; None after the last."""
        if level is None:
            return x
        power = level.reshape(-1)[0] ** self.soft.schedule_bias * self.soft.preservation
        return mixed(self.latent, x, self.change**power, self.soft.contrast_boost)


def mixed(old: Tensor, new: Tensor, share: Tensor, power: float) -> Tensor:
    """Latents [B, C, H, W] mixed by ``share`` [C, H, W] of the new one; the length of each pixel's vector
    is the power mean of both lengths."""
    line = old * (1 - share) + new * share
    weight = share[0][None, None]
    length = line.norm(dim=1, keepdim=True).double() + 0.00001
    lengths = (one.norm(dim=1, keepdim=True).double() ** power for one in (old, new))
    wanted = (next(lengths) * (1 - weight) + next(lengths) * weight) ** (1 / power)
    made: Tensor = line * (wanted / length).to(line.dtype)
    return made


# --- what stays of the old picture ------------------------------------------------------------------


def overlaid(
    soft: SoftInpainting,
    prepared: Prepared,
    latents: Tensor,
    request: Request,
    options: Options,
    enlarge: pictures.Resize,
) -> list[Prepared]:
    """For each picture of a batch what lies over it: more of the old picture where its latent changed less.

    ``latents`` [B, C, H, W] are what was sampled.
    """
    assert prepared.change is not None and request.source is not None
    sources = _sources(request, request.source, prepared, options, enlarge)
    greys = prepared.change[0].float().clamp(0, 1) ** (soft.preservation / 2)
    part = 0.5 * (1 - soft.mask_influence) + (1 - greys) * soft.mask_influence
    scale = (part / (1.00001 - part)).cpu().numpy()
    changes = (latents - prepared.latent).norm(dim=1).float().cpu().numpy()
    found = []
    for number, change in enumerate(changes):
        over = sources[min(number, len(sources) - 1)]
        mask = _mask(soft, change, scale, (request.width, request.height))
        if prepared.paste_to is not None:
            left, top, width, height = prepared.paste_to
            whole = Image.new("RGBA", over.size)
            whole.paste(pictures.resize(1, mask, width, height), (left, top))
            mask = whole
        own = pictures.overlay_of(over, mask)
        found.append(
            replace(
                prepared, overlays=tuple([own] * latents.shape[0]), mask_for_overlay=mask, always_over=True
            )
        )
    return found


def _sources(
    request: Request, source: Source, prepared: Prepared, options: Options, enlarge: pictures.Resize
) -> list[Image.Image]:
    """The source pictures at the size of what lies over the result."""
    found = []
    for number, sent in enumerate(source.images):
        image = pictures.decode_picture(sent, f"init_images[{number}]")
        image = pictures.flatten(image, options.text("img2img_background_color"))
        if prepared.paste_to is None:  # for mode 3 the webui keeps the size, and fails where it is another
            mode = 0 if source.resize_mode == 3 else source.resize_mode
            image = pictures.resize(mode, image, request.width, request.height, enlarge)
        found.append(image.convert("RGBA"))
    return found


def _mask(soft: SoftInpainting, change: Floats, scale: Floats, size: tuple[int, int]) -> Image.Image:
    """White where a picture is to show what was made; from how far its latent is from the old one."""
    far = windowed_mean(windowed_mean(change, 0.9, 1.0), 0.25, 0.75)
    with np.errstate(divide="ignore", invalid="ignore"):
        near = 1 / (1 + (far / (soft.threshold * scale)) ** soft.contrast)
    smooth = near * near * near * (near * (6 * near - 15) + 10)
    mask = Image.fromarray(np.nan_to_num(255.0 * (1 - smooth)).astype(np.uint8))
    return pictures.resize(2, mask, *size).convert("L").filter(ImageFilter.GaussianBlur(EDGE_BLUR_PX))


def windowed_mean(plane: Floats, lowest: float, highest: float) -> Floats:
    """[H, W]: each value becomes the weighted mean of a part of its sorted 5 x 5 neighbours, such as the
    uppermost tenth of their weight (0.9 to 1), which is at least 1."""
    kernel = _kernel()
    reach = kernel.shape[0] // 2
    around = np.pad(plane, reach), np.pad(np.ones_like(plane), reach)
    view = np.lib.stride_tricks.sliding_window_view
    windows = [view(one, kernel.shape).reshape(*plane.shape, -1) for one in around]
    order = np.argsort(windows[0], axis=-1, kind="stable")
    values = np.take_along_axis(windows[0], order, axis=-1)
    weights = np.take_along_axis(windows[1] * kernel.reshape(-1), order, axis=-1)
    ends = np.cumsum(weights, axis=-1)
    whole = ends[..., -1:]
    first, last = whole * lowest, whole * highest
    middle = (first + last) / 2
    narrow = last - first < 1
    first, last = np.where(narrow, middle - 0.5, first), np.where(narrow, middle + 0.5, last)
    over = narrow & (last > whole)
    first, last = np.where(over, whole - 1, first), np.where(over, whole, last)
    under = narrow & (first < 0)
    first, last = np.where(under, 0.0, first), np.where(under, 1.0, last)
    shares = np.clip(np.minimum(last, ends) - np.maximum(first, ends - weights), 0, None)
    return np.asarray((values * shares).sum(axis=-1) / shares.sum(axis=-1), np.float32)


def _kernel() -> NDArray[np.float64]:
    """5 x 5 of a Gaussian of deviation 1.5 px over the square root of 2, 0 at a distance of 3 px."""
    down, across = np.mgrid[-2:3, -2:3]
    squares, edge = (down**2 + across**2).astype(np.float64), np.exp(-9 / 2.25)
    return np.asarray(np.clip((np.exp(-squares / 2.25) - edge) / (1 - edge), 0, None))
