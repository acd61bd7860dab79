"""Pictures as the base64 that native requests and answers carry."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from sd_cloud.errors import InputRefused
from sd_cloud.outputs.png import encode
from sd_cloud.settings import FetchLimits


def encoded(image: Image.Image, infotext: str, option: Callable[[str], Any]) -> str:
    """One picture in the format that the options ask for, its infotext inside.

    Raises SavingFailed for a format that is none.
    """
    kind = str(option("samples_format") or "png").lower()
    kept = infotext if option("enable_pnginfo") is not False else ""
    quality, lossless = int(option("jpeg_quality") or 80), bool(option("webp_lossless"))
    return _base64(encode(image, kind, kept, quality=quality, lossless=lossless))


def preview(image: Image.Image) -> str:
    """A live preview as PNG, packed for speed."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return _base64(buffer.getvalue())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def opened(text: str, field: str, limits: FetchLimits) -> Image.Image:
    """A picture from base64, with or without a ``data:`` head; only its header has been read.

    Raises InputRefused naming the field.
    """
    if text.startswith("data:") and "," in text[:200]:
        text = text.split(",", 1)[1]
    if len(text) > limits.limit_bytes * 4 // 3 + 4:
        raise InputRefused(f"the picture has more than {limits.limit_bytes} bytes", field=field)
    formats = [kind.upper() for kind in limits.types]
    try:
        image = Image.open(
            io.BytesIO(base64.b64decode("".join(text.split()), validate=True)), formats=formats
        )
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputRefused("Invalid encoded image", field=field) from error
    if image.width * image.height > limits.limit_pixels:
        size = f"{image.width}x{image.height}"
        raise InputRefused(f"{size} is more than {limits.limit_pixels} pixels", field=field)
    return image
