"""Picture files with their infotext inside: how it is written, and how it is read back.

PNG has it in a text chunk ``parameters``. JPEG and WebP have it in the EXIF field UserComment
(Exif 2.32, 4.6.5): eight bytes ``UNICODE`` and zero, then UTF-16 big-endian.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

from PIL import Image, PngImagePlugin

from sd_cloud.errors import SavingFailed
from sd_cloud.outputs.infotext_parse import parse_infotext

CONTENT_TYPES = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp"}
#: The longest side that a format can hold, in pixels.
LONGEST_SIDE = {"jpg": 65535, "jpeg": 65535, "webp": 16383}

_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_UNDEFINED, _LONG = 7, 4  # TIFF field types
_UNICODE = b"UNICODE\0"

#: What of ``Image.info`` is about the file and not about the picture.
_NOT_ITEMS = frozenset(
    {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "exif", "loop", "background", "timestamp"}
    | {"duration", "progressive", "progression", "icc_profile", "chromaticity", "photoshop"}
)


def encode(
    image: Image.Image,
    kind: str,
    infotext: str = "",
    *,
    quality: int = 80,
    lossless: bool = False,
) -> bytes:
    """The file of a picture. ``kind`` is its name's ending: png, jpg, jpeg or webp.

    Texts in ``image.info`` go into a PNG as text chunks too. Raises SavingFailed for another kind.
    """
    buffer = io.BytesIO()
    infotext = encodable(infotext)
    if kind == "png":
        chunks = {k: v for k, v in image.info.items() if isinstance(k, str) and isinstance(v, str)}
        if infotext:
            chunks["parameters"] = infotext
        text = PngImagePlugin.PngInfo()
        for key, value in chunks.items():
            text.add_text(key, encodable(value))
        image.save(buffer, "PNG", pnginfo=text)
    elif kind in CONTENT_TYPES:
        plain = image if image.mode == "RGB" else image.convert("RGB")
        exif = user_comment(infotext) if infotext else b""
        if kind == "webp":
            plain.save(buffer, "WEBP", quality=quality, lossless=lossless, exif=exif)
        else:
            plain.save(buffer, "JPEG", quality=quality, exif=exif)
    else:
        raise SavingFailed(f"pictures are saved as png, jpg or webp, not {kind!r}", field="samples_format")
    return buffer.getvalue()


def encodable(text: str) -> str:
    """The text without lone surrogates, which JSON can hold and no file can."""
    return text.encode("utf-8", "replace").decode("utf-8")


def user_comment(text: str) -> bytes:
    """An EXIF block that holds nothing but this comment.

    Written out, since Pillow gives the field the type BYTE, which other readers (piexif, and with it
    the webui) do not take for a comment.
    """
    value = _UNICODE + text.encode("utf-16-be")
    # Offsets count from the TIFF header: 8 bytes, one directory of one entry (18 bytes), another.
    pointer = struct.pack(">HHHIII", 1, _EXIF_IFD, _LONG, 1, 26, 0)
    comment = struct.pack(">HHHIII", 1, _USER_COMMENT, _UNDEFINED, len(value), 44, 0)
    return b"Exif\0\0" + b"MM\0*" + struct.pack(">I", 8) + pointer + comment + value


def read_infotext(image: Image.Image) -> tuple[str, dict[str, Any]]:
    """The infotext of an opened picture ("" when it has none) and the other texts in its file."""
    items: dict[Any, Any] = dict(image.info)
    infotext = _as_text(items.pop("parameters", None)) or ""
    comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT) if "exif" in items else None
    if comment:
        infotext = _comment_text(comment) or infotext
    elif "exif" not in items and "comment" in items:  # GIF
        infotext = _as_text(items["comment"]) or infotext
    items = {str(key): _jsonable(value) for key, value in items.items() if key not in _NOT_ITEMS}
    if items.get("Software") == "NovelAI":
        infotext = _novelai(items, image.size) or infotext
    return infotext, items


def geninfo(image: Image.Image) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What ``/sdapi/v1/png-info`` answers: ``info``, ``items`` and ``parameters``."""
    infotext, items = read_infotext(image)
    return infotext, items, parse_infotext(infotext)


def _comment_text(comment: object) -> str:
    """A UserComment by the character code in its first eight bytes."""
    raw = comment if isinstance(comment, bytes) else str(comment).encode("utf-8", "replace")
    code, value = raw[:8], raw[8:]
    if code == _UNICODE:
        return _utf16(value)
    if code == b"ASCII\0\0\0":
        return value.decode("ascii", "replace")
    if code == b"JIS\0\0\0\0\0":
        return value.decode("shift_jis", "replace")
    return raw.lstrip(b"\0").decode("utf-8", "ignore")


def _utf16(value: bytes) -> str:
    """The standard leaves the byte order open. Big-endian is the webui's; some others differ."""
    if value[:2] == b"\xff\xfe":
        return value[2:].decode("utf-16-le", "replace")
    big = value.decode("utf-16-be", "replace")
    little = value.decode("utf-16-le", "replace")
    return little if "Steps: " in little and "Steps: " not in big else big.removeprefix("\ufeff")


def _as_text(value: object) -> str | None:
    if value is None:
        return None
    return value.decode("utf-8", "ignore") if isinstance(value, bytes) else str(value)


def _jsonable(value: object) -> Any:
    if isinstance(value, (str, int, float, bool)) or value is None:
        return str(value) if isinstance(value, str) else value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)):
        return [_jsonable(one) for one in value]
    return str(value)


def _novelai(items: Mapping[str, Any], size: tuple[int, int]) -> str:
    """The infotext that says what NovelAI's own metadata says; "" when it cannot be read."""
    try:
        told = json.loads(items["Comment"])
        negative, steps, sampler = told["uc"], told["steps"], told["sampler"]
        scale, seed = told["scale"], told["seed"]
    except (KeyError, TypeError, ValueError):
        return ""
    sampler = {"k_euler": "Euler", "k_euler_ancestral": "Euler a", "ddim": "DDIM", "k_lms": "LMS"}.get(
        str(sampler), "Euler a"
    )
    return (
        f"{items.get('Description', '')}\nNegative prompt: {negative}\n"
        f"Steps: {steps}, Sampler: {sampler}, CFG scale: {scale}, Seed: {seed}, "
        f"Size: {size[0]}x{size[1]}, Clip skip: 2, ENSD: 31337"
    )
