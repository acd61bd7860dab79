"""Bytes that are said to be a picture: what they are, how large, and whether they are whole."""

from __future__ import annotations

import base64
import binascii
import io
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from PIL import Image

from sd_cloud.errors import InputRefused
from sd_cloud.settings import FetchLimits

_WHITESPACE = re.compile(r"\s+")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_DATA_URL = re.compile(r"data:(?P<type>[^;,]*)(?P<rest>[^,]*),", re.IGNORECASE)

#: The first bytes of each type. A dot stands for any byte (the length in a RIFF header).
_SIGNATURES: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
    (kind, re.compile(signature, re.DOTALL))
    for kind, signature in (
        ("png", rb"\x89PNG\r\n\x1a\n"),
        ("jpeg", rb"\xff\xd8\xff"),
        ("gif", rb"GIF8[79]a"),
        ("webp", rb"RIFF....WEBP"),
        ("tiff", rb"II\*\0|MM\0\*"),
        ("bmp", rb"BM"),
    )
)


@dataclass(frozen=True)
class Facts:
    """What a checked picture is. Sizes in pixels."""

    kind: str
    width: int
    height: int


def sniffed(data: bytes) -> str | None:
    """The type of picture by its first bytes; None when it is none of those known here."""
    for kind, signature in _SIGNATURES:
        if signature.match(data):
            return kind
    return None


def check_picture(data: bytes, *, limits: FetchLimits, field: str) -> Facts:
    """Check type, size in bytes and pixels, and that the whole picture decodes.

    The pixel limit is checked on the header, before anything is decoded. Raises InputRefused.
    """
    if not data:
        raise InputRefused("there is no picture in it", field=field)
    if len(data) > limits.limit_bytes:
        raise InputRefused(f"{len(data)} bytes is above the limit of {limits.limit_bytes}", field=field)
    kind = sniffed(data)
    if kind not in limits.types:
        raise InputRefused(
            f"not a picture of a type that is taken here ({', '.join(limits.types)})", field=field
        )
    assert kind is not None
    # A decoder of hostile bytes can fail in as many ways as it has lines: whatever it raises means
    # the same to the caller, that this picture cannot be read.
    try:
        with Image.open(io.BytesIO(data), formats=[kind.upper()]) as image:
            facts = Facts(kind, image.width, image.height)
            if image.width * image.height > limits.limit_pixels:
                raise InputRefused(
                    f"{image.width}x{image.height} is above the limit of {limits.limit_pixels} pixels",
                    field=field,
                )
            image.load()
    except InputRefused:
        raise
    except Exception as error:
        raise InputRefused(f"the {kind} picture is broken or cut short: {error}", field=field) from error
    return facts


def decoded(text: str, *, limits: FetchLimits, field: str) -> tuple[str, bytes]:
    """Base64, bare or in a ``data:`` URL, as (bare base64 without whitespace, its bytes).

    Raises InputRefused for what is neither, or too long.
    """
    text = text.strip()
    header = _DATA_URL.match(text)
    if header:
        if not header["rest"].lower().rstrip().endswith(";base64"):
            raise InputRefused("a data: URL here has its picture in base64", field=field)
        text = text[header.end() :]
        if "%" in text:
            text = unquote_to_bytes(text).decode("ascii", "replace")
    text = _WHITESPACE.sub("", text)
    if len(text) * 3 // 4 > limits.limit_bytes + 2:
        raise InputRefused(f"the picture is above the limit of {limits.limit_bytes} bytes", field=field)
    try:
        return text, base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputRefused(
            f"neither base64, a data: URL, an http(s) link nor a file: {error}", field=field
        ) from error


def is_bare_picture(text: str) -> bool:
    """Whether a text is base64, all of it, that begins as a picture does (a JPEG's with a slash)."""
    if not _BASE64.fullmatch(text):
        return False
    start = text[: min(len(text), 32) // 4 * 4]
    try:
        return sniffed(base64.b64decode(start, validate=True)) is not None
    except binascii.Error:
        return False
