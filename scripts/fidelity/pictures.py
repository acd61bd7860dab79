"""The pictures that requests bring along, drawn here so that every run has the same."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, PngImagePlugin

SIZE = (160, 128)


def base64_of(image: Image.Image, file_type: str = "PNG", **how: Any) -> str:
    file = io.BytesIO()
    image.save(file, file_type, **how)
    return base64.b64encode(file.getvalue()).decode("ascii")


def image_of(text: str) -> Image.Image:
    """A picture from base64, with or without a data URL's head."""
    return Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2] or text)))


def _drawing(shift: int = 0) -> Image.Image:
    down, across = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    bands = [across * 255 / SIZE[0], down * 255 / SIZE[1], (across + down + shift) % 64 * 4]
    image = Image.fromarray(np.stack(bands, axis=-1).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.ellipse((40 + shift, 30, 110 + shift, 100), fill=(200, 60, 40))
    pen.rectangle((10, 90, 60, 120), fill=(20, 160, 90))
    return image


def plain() -> str:
    return base64_of(_drawing())


def other() -> str:
    return base64_of(_drawing(24))


def transparent() -> str:
    image = _drawing().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(SIZE))
    return base64_of(image)


def grey() -> str:
    return base64_of(_drawing().convert("L"))


def palette() -> str:
    return base64_of(_drawing().convert("P", palette=Image.Palette.ADAPTIVE, colors=32))


def turned() -> str:
    """A JPEG whose EXIF orientation asks for a quarter turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return base64_of(_drawing(), "JPEG", quality=95, exif=exif)


def with_infotext() -> str:
    entries = PngImagePlugin.PngInfo()
    entries.add_text(
        "parameters", "a cat\nNegative prompt: dog\nSteps: 4, Sampler: Euler a, Seed: 5, Size: 64x64"
    )
    return base64_of(_drawing(), pnginfo=entries)


def _spot(size: tuple[int, int]) -> Image.Image:
    image = Image.new("L", size, 0)
    width, height = size
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width * 5 // 8, height * 3 // 4), fill=255)
    return image


def mask(width: int = SIZE[0], height: int = SIZE[1]) -> str:
    return base64_of(_spot((width, height)))


def soft_mask() -> str:
    return base64_of(_spot(SIZE).filter(ImageFilter.GaussianBlur(10)))


def transparent_mask() -> str:
    image = Image.new("RGBA", SIZE, (255, 255, 255, 0))
    image.putalpha(_spot(SIZE))
    return base64_of(image)


def empty_mask() -> str:
    return base64_of(Image.new("L", SIZE, 0))
