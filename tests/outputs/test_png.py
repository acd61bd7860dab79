"""Infotext in files: written where the webui reads it, read where others write it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from sd_cloud.errors import SavingFailed
from sd_cloud.outputs.png import encode, geninfo, read_infotext, user_comment

SHARED = Path(__file__).resolve().parents[3] / "shared"
TEXT = "一只猫, héllo 😀\nNegative prompt: ugly\nSteps: 2, Sampler: Euler a, Seed: 1"


def read(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def image(mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (16, 8))


@pytest.mark.parametrize("kind", ["png", "jpg", "jpeg", "webp"])
@pytest.mark.parametrize("text", [TEXT, "plain ascii", "latin é", ""])
def test_what_is_written_is_read_back(kind: str, text: str) -> None:
    opened = read(encode(image(), kind, text))
    assert opened.size == (16, 8)
    assert read_infotext(opened)[0] == text


@given(
    text=st.text(
        alphabet=st.characters(exclude_characters="\0\ufeff\ufffe", exclude_categories=["Cs"]), max_size=200
    )
)
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_any_text_survives_but_for_lone_surrogates(kind: str, text: str) -> None:
    assert read_infotext(read(encode(image(), kind, text)))[0] == text


def test_a_lone_surrogate_does_not_cost_the_picture() -> None:
    for kind in ("png", "jpg", "webp"):
        assert read_infotext(read(encode(image(), kind, "a \ud800 b")))[0] == "a ? b"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_every_mode_can_be_saved_as_every_kind(kind: str, mode: str) -> None:
    opened = read(encode(image(mode), kind, TEXT))
    assert opened.mode == (mode if kind == "png" else "RGB")


def test_lossless_webp_keeps_the_pixels() -> None:
    noise = Image.effect_noise((16, 16), 100).convert("RGB")
    assert read(encode(noise, "webp", lossless=True)).convert("RGB").tobytes() == noise.tobytes()


def test_an_unknown_kind_is_saving_failed_and_names_the_option() -> None:
    with pytest.raises(SavingFailed) as caught:
        encode(image(), "../png")
    assert caught.value.field == "samples_format"


def test_texts_of_the_picture_itself_go_into_a_png() -> None:
    upscaled = image()
    upscaled.info = {"postprocessing": "Postprocess upscale by: 2", "dpi": (72, 72)}
    assert read_infotext(read(encode(upscaled, "png"))) == (
        "",
        {"postprocessing": "Postprocess upscale by: 2"},
    )


def test_piexif_with_which_the_webui_reads_finds_the_comment() -> None:
    piexif = pytest.importorskip("piexif")
    helper = pytest.importorskip("piexif.helper")
    for kind in ("jpg", "webp"):
        exif = piexif.load(encode(image(), kind, TEXT) if kind == "jpg" else user_comment(TEXT))
        assert helper.UserComment.load(exif["Exif"][piexif.ExifIFD.UserComment]) == TEXT


def test_a_comment_that_piexif_wrote_is_read() -> None:
    piexif = pytest.importorskip("piexif")
    helper = pytest.importorskip("piexif.helper")
    for encoding in ("unicode", "ascii"):
        text = TEXT if encoding == "unicode" else "plain"
        comment = helper.UserComment.dump(text, encoding=encoding)
        block = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}})
        buffer = io.BytesIO()
        image().save(buffer, "JPEG", exif=block)
        assert read_infotext(read(buffer.getvalue()))[0] == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"UNICODE\0" + "Steps: 2".encode("utf-16-le"), "Steps: 2"),
        (b"UNICODE\0" + "Steps: 2".encode("utf-16"), "Steps: 2"),
        (b"ASCII\0\0\0Steps: 2", "Steps: 2"),
        (b"\0\0\0\0\0\0\0\0Steps: 2", "Steps: 2"),
        ("Schritte: 2, ü".encode(), "Schritte: 2, ü"),
    ],
)
def test_comments_of_other_programs_are_read(raw: bytes, text: str) -> None:
    exif = Image.Exif()
    exif[0x8769] = {0x9286: raw}
    buffer = io.BytesIO()
    image().save(buffer, "JPEG", exif=exif.tobytes())
    assert read_infotext(read(buffer.getvalue()))[0] == text


def test_a_gif_has_it_in_its_comment() -> None:
    buffer = io.BytesIO()
    image("P").save(buffer, "GIF", comment=b"a cat\nSteps: 2")
    assert read_infotext(read(buffer.getvalue()))[0] == "a cat\nSteps: 2"


def test_a_png_of_novelai_is_told_in_the_webuis_words() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "NovelAI")
    text.add_text("Description", "a girl")
    told = {"uc": "bad", "steps": 28, "sampler": "k_euler_ancestral", "scale": 11, "seed": 5}
    text.add_text("Comment", json.dumps(told))
    buffer = io.BytesIO()
    image().save(buffer, "PNG", pnginfo=text)
    infotext, _, parameters = geninfo(read(buffer.getvalue()))
    assert infotext.startswith("a girl\nNegative prompt: bad\nSteps: 28, Sampler: Euler a, CFG scale: 11")
    assert parameters["Seed"] == "5" and parameters["Size-1"] == "16"


def test_what_is_told_of_a_file_is_json_whatever_is_in_it() -> None:
    buffer = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_itxt("workflow", '{"1": "ü"}')
    opened = image("P")
    opened.save(buffer, "PNG", transparency=b"\x00\x80\xff", pnginfo=text, dpi=(72, 72), gamma=0.45)
    infotext, items, parameters = geninfo(read(buffer.getvalue()))
    assert infotext == "" and items["workflow"] == '{"1": "ü"}' and "dpi" not in items
    assert json.loads(json.dumps([items, parameters]))


def test_infotexts_that_a_real_webui_wrote_are_read() -> None:
    if not SHARED.is_dir():
        pytest.skip("the folder shared/ is not beside this checkout")
    seen = 0
    for file in sorted((SHARED / "golden" / "cases").rglob("*.png")):
        with Image.open(file) as opened:
            infotext, _, parameters = geninfo(opened)
        if infotext:
            seen += 1
            assert int(parameters["Steps"]) > 0 and parameters["Sampler"], file.name
    if not seen:
        pytest.skip("no golden picture has an infotext inside")


def test_the_real_webuis_own_infotext_is_taken_apart(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("the folder shared/ is not beside this checkout")
    info: dict[str, Any] = json.loads((SHARED / "reference/webui-1.10.1/txt2img.info.json").read_text())
    _, _, parameters = geninfo(read(encode(image(), "png", info["infotexts"][0])))
    assert parameters["Prompt"] == info["prompt"]
    assert parameters["Seed"] == str(info["seed"])
    assert parameters["Model hash"] == info["sd_model_hash"]
    assert (parameters["Size-1"], parameters["Size-2"]) == ("64", "64")
