"""Pictures as the base64 that native requests and answers carry."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from sd_cloud.errors import BadRequest, ServiceError
from sd_cloud.job import Job
from sd_cloud.outputs.png import encode
from sd_cloud.service import Service


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


async def checked_picture(service: Service, text: str, field: str) -> str:
    """A picture that belongs to no job, under the rules of one that does: links fetched, types and
    sizes checked, as plain base64. Raises BadRequest, InputRefused, InputUnreachable with ``field``.
    """
    if not text.strip():
        raise BadRequest("Invalid encoded image: expected base64", field=field)
    try:
        looked_up = await service.inputs.resolve(Job("extras", {"image": text}))
    except ServiceError as error:
        raise type(error)(error.args[0], field=field) from None
    return str(looked_up.payload["image"])


def opened(checked: str) -> Image.Image:
    """A picture from checked base64."""
    return Image.open(io.BytesIO(base64.b64decode(checked)))
