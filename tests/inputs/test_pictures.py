"""Bytes that claim to be a picture."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sd_cloud.errors import InputRefused
from sd_cloud.inputs.pictures import check_picture, decoded, is_bare_picture, sniffed
from sd_cloud.settings import FetchLimits
from tests.inputs.pictures import TYPES, as_bytes, as_text, noise

LIMITS = FetchLimits()


def check(data: bytes, limits: FetchLimits = LIMITS) -> tuple[str, int, int]:
    facts = check_picture(data, limits=limits, field="mask")
    return facts.kind, facts.width, facts.height


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_is_known_by_its_bytes(kind: str) -> None:
    assert check(as_bytes(kind)) == (kind, 24, 16)


def test_both_byte_orders_of_tiff_are_known() -> None:
    assert sniffed(b"II*\0") == sniffed(b"MM\0*") == "tiff"
    assert sniffed(b"RIFF\n\n\n\nWEBP") == "webp"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.4",
        b"PK\x03\x04",
        b"%!PS-Adobe",
        b"P6 1 1 255 abc",
    ],
)
def test_what_is_no_picture_of_these_types_is_refused(data: bytes) -> None:
    with pytest.raises(InputRefused) as caught:
        check(data)
    assert caught.value.field == "mask"


def test_only_the_types_of_the_settings_are_taken() -> None:
    assert check(as_bytes("png"), replace(LIMITS, types=("png",)))[0] == "png"
    with pytest.raises(InputRefused, match="not a picture of a type"):
        check(as_bytes("gif"), replace(LIMITS, types=("png",)))


def test_a_type_is_opened_as_what_it_says_and_nothing_else() -> None:
    """A TIFF behind a PNG's first bytes is a broken PNG, not a TIFF."""
    with pytest.raises(InputRefused, match="broken"):
        check(b"\x89PNG\r\n\x1a\n" + as_bytes("tiff"))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_picture_that_is_cut_short_is_refused(kind: str, part: float) -> None:
    data = as_bytes(kind, noise(64, 64))
    with pytest.raises(InputRefused, match="broken or cut short"):
        check(data[: int(len(data) * part)])


@given(data=st.binary(max_size=300))
@pytest.mark.parametrize("kind", TYPES)
def test_whatever_follows_the_first_bytes_it_is_refused_and_nothing_else_happens(
    kind: str, data: bytes
) -> None:
    with pytest.raises(InputRefused):
        check(as_bytes(kind)[:12] + data)


def png_claiming(width: int, height: int) -> bytes:
    """A few bytes of PNG whose header promises any number of pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (9000, 9000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", decode)
    with pytest.raises(InputRefused, match="pixels"):
        check(png_claiming(width, height))


def test_the_pixel_limit_counts_width_times_height() -> None:
    assert check(as_bytes("png"), replace(LIMITS, limit_pixels=24 * 16))[1:] == (24, 16)
    with pytest.raises(InputRefused, match="24x16 is above the limit of 383 pixels"):
        check(as_bytes("png"), replace(LIMITS, limit_pixels=383))


def test_the_byte_limit_holds_for_what_was_sent_too() -> None:
    data = as_bytes("bmp")
    assert check(data, replace(LIMITS, limit_bytes=len(data)))
    with pytest.raises(InputRefused, match="above the limit"):
        check(data, replace(LIMITS, limit_bytes=len(data) - 1))


def take(text: str, limits: FetchLimits = LIMITS) -> tuple[str, bytes]:
    return decoded(text, limits=limits, field="mask")


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        " {}\n",
        "data:image/png;base64,{}",
        "DATA:image/png;BASE64,{}",
        "data:;base64,{}",
        "data:image/png;charset=utf-8;base64,{}",
    ],
)
def test_base64_is_taken_bare_and_as_a_data_url(form: str) -> None:
    text = as_text()
    assert take(form.format(text)) == (text, base64.b64decode(text))


def test_base64_in_lines_is_taken_without_them() -> None:
    data = as_bytes()
    assert take(base64.encodebytes(data).decode()) == (base64.b64encode(data).decode(), data)


def test_percent_signs_in_a_data_url_are_undone() -> None:
    text = base64.b64encode(b"\x89PNG" + bytes([251, 255, 190])).decode()
    assert take("data:image/png;base64," + text.replace("+", "%2B").replace("/", "%2F"))[0] == text


@pytest.mark.parametrize(
    "text", ["abc", "====", "a b!", "data:image/png,abc", "data:image/png;base64,a*", "data:abc", "é", "_-_-"]
)
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(InputRefused) as caught:
        take(text)
    assert caught.value.field == "mask"


def test_base64_above_the_limit_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(InputRefused, match="limit of 10 bytes"):
        take("!" * 1000, replace(LIMITS, limit_bytes=10))


@given(st.binary(max_size=100))
def test_any_bytes_come_back(data: bytes) -> None:
    assert take(base64.b64encode(data).decode())[1] == data


@pytest.mark.parametrize("kind", TYPES)
def test_base64_of_a_picture_is_told_from_a_path(kind: str) -> None:
    assert is_bare_picture(as_text(kind))


@pytest.mark.parametrize(
    "text", ["/9j/x.png", "/9j/AAAAAAAA/../../../etc/passwd", "/etc/passwd", "models/x", "", "Qk", "/9j"]
)
def test_a_path_is_not_taken_for_base64(text: str) -> None:
    assert not is_bare_picture(text)


def test_exif_is_left_for_the_engine() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    buffer = io.BytesIO()
    noise(24, 16).save(buffer, "JPEG", exif=exif.tobytes())
    assert check(buffer.getvalue()) == ("jpeg", 24, 16)
