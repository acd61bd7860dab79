"""Control maps brought to the size of the picture, and the image each unit looks at.

Follows sd-webui-controlnet: edges one pixel wide stay one pixel wide, flat colours (segments) stay
flat, and everything else is resized by area or cubic interpolation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sd_cloud.engines.diffusion import pictures
from sd_cloud.engines.diffusion.controlnet.units import RESIZE_MODES, ControlUnit, ResizeMode
from sd_cloud.engines.diffusion.preprocess.detect import rgb
from sd_cloud.engines.diffusion.preprocess.lines import Pixels, ridges
from sd_cloud.errors import BadRequest

Map = NDArray[Any]
"""[height, width, 3] bytes, or with a mask as the fourth channel, then float32 in 0..255."""

FLAT_COLOURS = range(3, 200)
THINNING_TURNS = 32

# 1: drawn, -1: empty, 0: either. Four turns of each are used.
_THIN = ([[-1, -1, -1], [0, 1, 0], [1, 1, 1]], [[0, -1, -1], [1, 1, -1], [0, 1, 0]])
_PRUNE = ([[-1, -1, -1], [-1, 1, -1], [0, 0, -1]], [[-1, -1, -1], [-1, 1, -1], [-1, 0, 0]])


@dataclass(frozen=True)
class Canvas:
    """The picture being made, as far as control maps depend on it. Sizes are (width, height) px.

    ``init_image`` and ``mask`` (inverted and blurred as the request asks) are img2img's own;
    ``crop`` is the region that "only masked" enlarges, ``init_mode`` img2img's ``resize_mode``.
    """

    size: tuple[int, int]
    hires_size: tuple[int, int] | None = None
    seed: int = 0
    init_image: Image.Image | None = None
    init_mode: int = 0
    mask: Image.Image | None = None
    crop: tuple[int, int, int, int] | None = None

    @property
    def latent_size(self) -> tuple[int, int]:
        return self.size[0] // 8 * 8, self.size[1] // 8 * 8

    @property
    def latent_hires_size(self) -> tuple[int, int] | None:
        return (self.hires_size[0] // 8 * 8, self.hires_size[1] // 8 * 8) if self.hires_size else None


def map_seed(payload: Mapping[str, Any], first_seed: int) -> int:
    """What random preprocessors start from: the request's two seeds, its first picture's for -1."""
    sent = (payload.get(name) for name in ("seed", "subseed"))
    seeds = (first_seed if one in (None, "", -1) else max(int(one), 0) for one in sent)
    return sum(seeds) & 0xFFFFFFFF


def unit_image(unit: ControlUnit, canvas: Canvas) -> tuple[Pixels, ResizeMode]:
    """What a unit looks at, RGB or (inpainting) RGB with its mask, and how that is brought to size.

    Raises BadRequest when neither the unit nor img2img has an image.
    """
    if unit.image is not None:
        pixels = np.asarray(unit.image.convert("RGB"))
        mask = np.zeros(pixels.shape[:2], np.uint8) if unit.mask is None else np.asarray(unit.mask)
        if unit.module.is_inpaint or unit.module.sees_through_mask:
            found, mode = np.dstack([pixels, mask]), unit.resize_mode
        else:
            drawn = not ((mask <= 5).all() or (mask >= 250).all())
            found, mode = rgb(mask) if drawn else pixels, unit.resize_mode
    elif canvas.init_image is not None:
        pixels = np.asarray(canvas.init_image.convert("RGB"))
        mode = RESIZE_MODES[canvas.init_mode if canvas.init_mode in (0, 1, 2) else 0]
        found = np.dstack([pixels, _own_mask(canvas, pixels)]) if unit.module.is_inpaint else pixels
    else:
        raise BadRequest(
            "the unit has no image, and there is no img2img image to use", field=f"{unit.field}.image"
        )
    if canvas.crop is not None and canvas.mask is not None and unit.crop_to_mask:
        found = _cropped(found, canvas.mask.size, canvas.crop, canvas.size, mode)
    return np.ascontiguousarray(found), mode


def _own_mask(canvas: Canvas, pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    if canvas.mask is None:
        return np.zeros((height, width), np.uint8)
    return np.asarray(canvas.mask.convert("L").resize((width, height)))


def _cropped(
    pixels: Pixels,
    whole: tuple[int, int],
    crop: tuple[int, int, int, int],
    size: tuple[int, int],
    mode: ResizeMode,
) -> Pixels:
    """The part of the unit's image that lies under the region "only masked" works on."""
    planes = [Image.fromarray(np.ascontiguousarray(pixels[:, :, place])) for place in range(pixels.shape[2])]
    cut = [pictures.resize(RESIZE_MODES.index(mode), plane, *whole).crop(crop) for plane in planes]
    return np.dstack([np.asarray(pictures.resize(2, plane, *size).getchannel(0)) for plane in cut])


def perfect_resolution(pixels: Pixels, size: tuple[int, int], mode: ResizeMode) -> int:
    """The preprocessor resolution at which no pixel of the map is resized afterwards."""
    height, width = pixels.shape[:2]
    factors = (size[1] / height, size[0] / width)
    factor = min(factors) if mode == "Resize and Fill" else max(factors)
    return int(np.round(factor * min(height, width)))


def fit(pixels: Map, mode: ResizeMode, size: tuple[int, int]) -> Map:
    """A map at ``size`` (width, height): stretched, cropped or bordered by its median edge colour."""
    width, height = size
    if mode == "Just Resize":
        return np.ascontiguousarray(resized_map(pixels, size))
    factors = (height / pixels.shape[0], width / pixels.shape[1])
    factor = min(factors) if mode == "Resize and Fill" else max(factors)
    inner = (int(np.round(pixels.shape[1] * factor)), int(np.round(pixels.shape[0] * factor)))
    scaled = resized_map(pixels, inner)
    if mode == "Crop and Resize":
        top, left = max(0, (inner[1] - height) // 2), max(0, (inner[0] - width) // 2)
        return np.ascontiguousarray(scaled[top : top + height, left : left + width])
    border = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    if border.shape[0] == 4:
        border[3] = 255  # what is added is to be inpainted
    filled = np.tile(border.astype(pixels.dtype), (height, width, 1))
    top, left = max(0, (height - inner[1]) // 2), max(0, (width - inner[0]) // 2)
    filled[top : top + inner[1], left : left + inner[0]] = scaled
    return np.ascontiguousarray(filled)


def resized_map(pixels: Map, size: tuple[int, int]) -> Map:
    """Resized by what the map is: edges, flat colours, or a photograph; a mask stays black and white."""
    mask = pixels[:, :, 3] if pixels.shape[2] == 4 else None
    colours = pixels[:, :, :3]
    if (colours.shape[1], colours.shape[0]) == size:
        return _with_mask(colours, mask)
    smaller = size[0] * size[1] < colours.shape[0] * colours.shape[1]
    larger = size[0] * size[1] > colours.shape[0] * colours.shape[1]
    count = len(np.unique(colours.reshape(-1, 3), axis=0))
    if count in FLAT_COLOURS:
        how = cv2.INTER_NEAREST
    else:
        how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    scaled = np.asarray(cv2.resize(np.ascontiguousarray(colours), size, interpolation=how), pixels.dtype)
    if mask is not None:
        mask = np.asarray(cv2.resize(np.ascontiguousarray(mask), size, interpolation=how), pixels.dtype)
    if count == 2 and colours.min() < 16 and colours.max() > 240:
        scaled = _two_colours(scaled, thin_edges=_is_one_pixel_wide(colours), prune=larger)
    return _with_mask(scaled, mask)


def _with_mask(colours: Map, mask: Map | None) -> Map:
    if mask is None:
        return colours
    return np.dstack([colours, np.where(mask > 127, 255, 0).astype(colours.dtype)])


def _is_one_pixel_wide(colours: Map) -> bool:
    """Whether opening by 3 x 3 px takes away more than half of what is drawn."""
    square = np.ones((3, 3), np.uint8)
    opened = np.asarray(cv2.dilate(cv2.erode(colours, square), square))
    return bool((opened < colours).sum() * 2 > (colours > 127).sum())


def _two_colours(scaled: Map, *, thin_edges: bool, prune: bool) -> Pixels:
    grey: Pixels = scaled.astype(np.float32).mean(axis=2).clip(0, 255).astype(np.uint8)
    if thin_edges:
        grey = ridges(grey)
    _, binary = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    drawn = np.asarray(binary, np.uint8)
    return rgb(thin(drawn, prune=prune) if thin_edges else drawn)


def thin(drawn: Pixels, *, prune: bool) -> Pixels:
    """Lines one pixel wide, by repeated hit-or-miss removal (Zhang, "High Quality Edge Thinning", 2023)."""
    drawn = drawn.copy()
    for _ in range(THINNING_TURNS):
        if not _remove(drawn, _THIN):
            break
    if prune:
        _remove(drawn, _PRUNE)
    return drawn


def _remove(drawn: Pixels, patterns: tuple[list[list[int]], ...]) -> bool:
    """Take away what matches a pattern in any of four turns, in place; whether anything did."""
    changed = False
    for turns in range(4):
        for pattern in patterns:
            kernel: NDArray[Any] = np.ascontiguousarray(np.rot90(np.array(pattern, np.int32), turns))
            hit = np.asarray(cv2.morphologyEx(drawn, cv2.MORPH_HITMISS, kernel)) > 127
            drawn[hit] = 0
            changed = changed or bool(hit.any())
    return changed
