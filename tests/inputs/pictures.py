"""Small pictures of every type, as bytes and as base64."""

from __future__ import annotations

import base64
import io

from PIL import Image

TYPES = ("png", "jpeg", "webp", "tiff", "bmp", "gif")


def noise(width: int = 24, height: int = 16) -> Image.Image:
    return Image.effect_noise((width, height), 80).convert("RGB")


def as_bytes(kind: str = "png", image: Image.Image | None = None) -> bytes:
    buffer = io.BytesIO()
    (image or noise()).save(buffer, kind.upper())
    return buffer.getvalue()


def as_text(kind: str = "png") -> str:
    return base64.b64encode(as_bytes(kind)).decode()
