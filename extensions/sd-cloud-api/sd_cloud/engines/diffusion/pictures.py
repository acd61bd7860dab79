"""Pictures around the engine: resizing, masks, overlays, colours, the grid. Pillow, OpenCV and numpy."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageFilter, ImageOps

from sd_cloud.errors import BadRequest

Box = tuple[int, int, int, int]
LANCZOS = Image.Resampling.LANCZOS
Resize = Callable[[Image.Image, int, int], Image.Image]


def decode_picture(text: str, field: str) -> Image.Image:
    """A picture from base64 (a data URL too), turned as its EXIF says. Raises BadRequest."""
    body = text.split(",", 1)[1] if text.startswith("data:") else text
    try:
        image: Image.Image = Image.open(io.BytesIO(base64.b64decode(body, validate=False)))
        image.load()
    except (binascii.Error, ValueError, OSError, SyntaxError) as error:
        raise BadRequest(f"is not a picture in base64 ({error})"[:200], field=field) from error
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGB", "P") and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image


def flatten(image: Image.Image, background: str) -> Image.Image:
    """The picture without transparency, on ``background`` (``#rrggbb``)."""
    if image.mode == "RGBA":
        under = Image.new("RGBA", image.size, background)
        under.paste(image, mask=image)
        image = under
    return image.convert("RGB")


def stretch(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), resample=LANCZOS)


def resize(mode: int, image: Image.Image, width: int, height: int, by: Resize = stretch) -> Image.Image:
    """To a size. Mode 0 stretches; 1 fills and crops; 2 fits and continues the edges outward."""
    if mode == 0:
        return by(image, width, height)
    target, own = width / height, image.width / image.height
    fills = mode == 1
    by_width = target > own if fills else target < own
    if by_width:
        inner_width, inner_height = width, image.height * width // image.width
    else:
        inner_width, inner_height = image.width * height // image.height, height
    inner = by(image, inner_width, inner_height)
    result = Image.new("RGB", (width, height))
    left, top = width // 2 - inner_width // 2, height // 2 - inner_height // 2
    result.paste(inner, (left, top))
    if not fills:
        _continue_edges(result, inner, left, top, target < own)
    return result


def _continue_edges(result: Image.Image, inner: Image.Image, left: int, top: int, above: bool) -> None:
    width, height = result.size
    w, h = inner.size
    if above and top > 0:
        result.paste(inner.resize((width, top), box=(0, 0, width, 0)), (0, 0))
        result.paste(inner.resize((width, top), box=(0, h, width, h)), (0, top + h))
    elif not above and left > 0:
        result.paste(inner.resize((left, height), box=(0, 0, 0, height)), (0, 0))
        result.paste(inner.resize((left, height), box=(w, 0, w, height)), (left + w, 0))


# --- masks ----------------------------------------------------------------------------------------


def binary_mask(image: Image.Image, *, rounded: bool) -> Image.Image:
    """Mode L; a picture with transparency gives its alpha, cut at 128 when ``rounded``."""
    if image.mode == "RGBA" and image.getextrema()[-1] != (255, 255):
        alpha = image.split()[-1].convert("L")
        return alpha.point(lambda value: 255 if value > 128 else 0) if rounded else alpha
    return image.convert("L")


def blur_mask(mask: Image.Image, across: int, down: int) -> Image.Image:
    """Gaussian blur with a sigma (pixels) for each direction, one after the other."""
    pixels = np.asarray(mask)
    if across > 0:
        pixels = cv2.GaussianBlur(pixels, (_kernel(across), 1), across)
    if down > 0:
        pixels = cv2.GaussianBlur(pixels, (1, _kernel(down)), down)
    return Image.fromarray(np.asarray(pixels, dtype=np.uint8))


def _kernel(sigma: int) -> int:
    return 2 * int(2.5 * sigma + 0.5) + 1


def masked_region(mask: Image.Image, padding: int) -> Box | None:
    """The box around all that is masked, with ``padding`` pixels; None when nothing is."""
    box = mask.getbbox()
    if box is None:
        return None
    x1, y1, x2, y2 = box
    return (
        max(x1 - padding, 0),
        max(y1 - padding, 0),
        min(x2 + padding, mask.width),
        min(y2 + padding, mask.height),
    )


def expand_region(box: Box, width: int, height: int, image_width: int, image_height: int) -> Box:
    """The box made larger to the proportions of ``width`` by ``height``, kept inside the image."""
    x1, y1, x2, y2 = box
    own, wanted = (x2 - x1) / (y2 - y1), width / height
    if own > wanted:
        y1, y2 = _grow(y1, y2, int((x2 - x1) / wanted - (y2 - y1)), image_height)
    else:
        x1, x2 = _grow(x1, x2, int((y2 - y1) * wanted - (x2 - x1)), image_width)
    return x1, y1, x2, y2


def _grow(start: int, end: int, by: int, limit: int) -> tuple[int, int]:
    start -= by // 2
    end += by - by // 2
    if end >= limit:
        start -= end - limit
        end = limit
    if start < 0:
        end -= start
        start = 0
    return start, min(end, limit)


def fill_masked(image: Image.Image, mask: Image.Image) -> Image.Image:
    """What is masked, filled with ever wider blurs of what is not."""
    filled = Image.new("RGBA", image.size)
    kept = Image.new("RGBa", image.size)
    kept.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    for radius, times in ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1)):
        blurred = kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            filled.alpha_composite(blurred)
    return filled.convert("RGB")


# --- putting a made picture back ------------------------------------------------------------------


def overlay_of(image: Image.Image, mask: Image.Image) -> Image.Image:
    """What stays of the source picture, transparent where it is masked."""
    kept = Image.new("RGBa", image.size)
    kept.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    return kept.convert("RGBA")


def put_back(
    image: Image.Image, paste_to: Box | None, overlay: Image.Image | None
) -> tuple[Image.Image, Image.Image]:
    """The picture under its overlay, and as it was made. ``paste_to``: (left, top, width, height)."""
    if overlay is None:
        return image, image.copy()
    if paste_to is not None:
        left, top, width, height = paste_to
        base = Image.new("RGBA", overlay.size)
        base.paste(resize(1, image, width, height), (left, top))
        image = base
    made = image.copy()
    image = image.convert("RGBA")
    image.alpha_composite(overlay)
    return image.convert("RGB"), made


def mask_composite(made: Image.Image, mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The made picture where it was masked, transparent elsewhere."""
    where = resize(2, mask, *size).convert("L")
    return Image.composite(made.convert("RGBA").convert("RGBa"), Image.new("RGBa", size), where).convert(
        "RGBA"
    )


# --- colours --------------------------------------------------------------------------------------


def colour_target(image: Image.Image) -> NDArray[np.uint8]:
    """What :func:`match_colours` matches to: the picture in LAB."""
    return np.asarray(cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2LAB), dtype=np.uint8)


def match_colours(target: NDArray[np.uint8], image: Image.Image) -> Image.Image:
    """The picture with each LAB channel's histogram matched to the target's, its luminosity kept."""
    lab = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2LAB)
    matched = np.stack(
        [_match_histogram(lab[..., c].astype(np.uint8), target[..., c]) for c in range(3)], axis=-1
    )
    recoloured = cv2.cvtColor(matched.astype(np.uint8), cv2.COLOR_LAB2RGB)
    return with_luminosity(Image.fromarray(recoloured.astype(np.uint8)), image)


def _match_histogram(source: NDArray[np.uint8], template: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Map values so that their cumulative distribution becomes the template's (Gonzalez and Woods)."""
    counts = np.bincount(source.ravel(), minlength=256)
    wanted = np.bincount(template.ravel(), minlength=256)
    there = np.nonzero(wanted)[0]
    shares = np.cumsum(counts) / source.size
    mapped = np.interp(shares, np.cumsum(wanted)[there] / template.size, there)
    return np.asarray(mapped[source], dtype=np.float64)


def with_luminosity(colours: Image.Image, light: Image.Image) -> Image.Image:
    """Hue and saturation of one, luminosity of the other (W3C Compositing, blend mode luminosity, with the
    weights of Rec. 601)."""
    backdrop = np.asarray(colours.convert("RGB"), dtype=np.float64) / 255.0
    source = np.asarray(light.convert("RGB"), dtype=np.float64) / 255.0
    result = backdrop + (_luminosity(source) - _luminosity(backdrop))
    own = _luminosity(result)
    low, high = result.min(axis=-1, keepdims=True), result.max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        result = np.where(low < 0, own + (result - own) * own / (own - low), result)
        result = np.where(high > 1, own + (result - own) * (1 - own) / (high - own), result)
    return Image.fromarray((np.nan_to_num(result).clip(0, 1) * 255).astype(np.uint8))


def _luminosity(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(pixels @ np.array([0.299, 0.587, 0.114]), dtype=np.float64)[..., None]


# --- the grid -------------------------------------------------------------------------------------


def grid(
    images: Sequence[Image.Image], batch_size: int, *, rows: int, no_gaps: bool, background: str
) -> Image.Image:
    """All pictures in one. ``rows``: -1 square, 0 a row for each batch, else as many."""
    if rows == 0:
        rows = batch_size
    elif rows < 0:
        root = math.sqrt(len(images))
        rows = math.floor(root) if no_gaps else round(root)
        while no_gaps and len(images) % rows:
            rows -= 1
    rows = min(rows, len(images))
    columns = math.ceil(len(images) / rows)
    width, height = (max(sides) for sides in zip(*(image.size for image in images), strict=True))
    sheet = Image.new("RGB", (columns * width, rows * height), ImageColor.getcolor(background, "RGB"))
    for i, image in enumerate(images):
        left = i % columns * width + (width - image.width) // 2
        top = i // columns * height + (height - image.height) // 2
        sheet.paste(image, (left, top))
    return sheet
